"""Saves a job's files: what one service's connectors see as `context.assets`."""

from __future__ import annotations

import asyncio
import functools
import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from empd.asset import AssetConfig, AssetContent, AssetFailed, AssetRef
from empd.assets.content import Intake, take
from empd.assets.local import LocalStore
from empd.assets.naming import Mark, Naming, clean_file, clean_folder, join
from empd.assets.room import Room
from empd.assets.store import Request, Store
from empd.errors import FailureClass
from empd.media import media_type

if TYPE_CHECKING:
    from empd.assets.cdn import Cdn

_METADATA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


class Wishes(NamedTuple):
    """What a payload says of its assets: `save_assets`, and in `ctx` `prefix` and `filename`."""

    save: bool = True
    prefix: str = ""
    file_name: str = ""


class Saver:
    """The assets of one service: where they go, how they are called. Opens its store for the first that is saved.

    `room` is the memory of what is on its way, also for the other services of a worker.
    """

    def __init__(self, config: AssetConfig, root: Path, free_bytes_min: int, room: Room | None = None) -> None:
        self.config = config
        self.root = root
        self._free_bytes_min = free_bytes_min
        self.room = room or Room()
        self._cdn: Cdn | None = None
        self._opening = asyncio.Lock()
        self._opened = False

    @functools.cached_property
    def store(self) -> Store:
        """Where they go. Azure's client is large; a worker that saves nothing there does not carry it."""
        return _store(self.config, self.root, self._free_bytes_min)

    async def open(self) -> None:
        """Makes ready, once, and sees that assets could be saved. Raises AssetFailed."""
        async with self._opening:
            if not self._opened:
                await self.store.open()
                try:
                    await self.store.check()
                except AssetFailed:
                    await self.store.close()
                    raise
                self._opened = True

    async def check(self) -> None:
        """Raises AssetFailed when assets could not be saved now."""
        await self.open()
        await self.store.check()

    async def remove_left(self, naming: Naming) -> int:
        """Removes what this attempt at a job, and those before it, have saved; how many. Raises AssetFailed."""
        # Not `open`: a store with no room for more can be tidied.
        async with self._opening:
            if not self._opened:
                # Who only tidies may have to import its client first, which takes a while.
                await (await asyncio.to_thread(lambda: self.store)).open()
                self._opened = True
        return await self.store.sweep(naming, ())

    async def close(self) -> None:
        """Lets go of everything."""
        if self._opened:
            self._opened = False
            await self.store.close()
        network, self._cdn = self._cdn, None
        if network is not None:
            await network.close()

    def bind(self, mark: Mark, payload: Any) -> JobAssets:
        """The assets of one attempt. Raises AssetFailed when the payload wishes what cannot be."""
        wishes = self._wishes(payload)
        prefix = join(clean_folder(self.config.prefix, "assets.prefix"), wishes.prefix)
        return JobAssets(self, Naming(prefix, mark, wishes.file_name), wishes.save)

    async def cdn_url(self, name: str, size_bytes: int) -> str | None:
        """Where the CDN shows an asset, once it does (when `cdn_check` asks for that); None without a CDN."""
        config = self.config
        if not config.cdn_url:
            return None
        url = f"{config.cdn_url.rstrip('/')}/{urllib.parse.quote(name)}"
        if config.cdn_check:
            if self._cdn is None:
                # It brings aiohttp, which a worker that asks no CDN need not carry.
                from empd.assets.cdn import Cdn

                self._cdn = Cdn(config.cdn_attempts, config.cdn_interval_s)
            await self._cdn.wait_until_shown(url, size_bytes)
        return url

    def _wishes(self, payload: Any) -> Wishes:
        if not isinstance(payload, dict):
            return Wishes()
        ctx = payload.get("ctx")
        given = ctx if isinstance(ctx, dict) else {}
        save = payload.get("save_assets", given.get("save_assets", True)) is not False
        ours = {"provider": self.config.provider, "bucket": self.config.container, "cdnUrl": self.config.cdn_url}
        for key, value in ours.items():
            # The daemon's credentials must not write wherever a client says.
            if given.get(key) not in (None, "", value):
                reason = f"payload.ctx.{key}: {given[key]!r} is not where this service saves; accepted: {value!r}"
                raise AssetFailed(FailureClass.INVALID_INPUT, reason, retry=False)
        for key in ("prefix", "filename"):
            if not isinstance(given.get(key, ""), str):
                raise AssetFailed(FailureClass.INVALID_INPUT, f"payload.ctx.{key}: not a string", retry=False)
        prefix = clean_folder(given.get("prefix", ""), "payload.ctx.prefix")
        return Wishes(save, prefix, clean_file(given.get("filename", "")))


class JobAssets:
    """One attempt's assets. Its result counts what it names; the rest goes (`settle`, `discard`)."""

    def __init__(self, saver: Saver, naming: Naming, keeps: bool) -> None:
        self._saver = saver
        self.naming = naming
        self.keeps = keeps
        self._number = 0
        self.saved: dict[str, AssetRef] = {}

    async def save(
        self, content: AssetContent, *, output: int = 0, name: str = "", metadata: Mapping[str, Any] | None = None
    ) -> AssetRef:
        """Saves one asset: `output` is its index among the job's outputs, `name` what the service calls it.

        Raises AssetFailed. Nothing is kept when the payload says `"save_assets": false`.
        """
        given = {key: str(value) for key, value in (metadata or {}).items()}
        for key in given:
            if not _METADATA_NAME.fullmatch(key):
                raise AssetFailed(FailureClass.INTERNAL, f"metadata {key!r} is not an identifier", retry=False)
        intake = await take(content, self._saver.room)
        try:
            if not self.keeps:
                return await self._measure(intake, output, name)
            await self._saver.open()
            self._number += 1
            request = Request(self.naming, output, name, given, self._number)
            stored = await self._saver.store.put(intake, request)
            # Known from here on, so that it is discarded should what follows fail.
            ref = AssetRef(
                name=stored.name,
                media_type=stored.media_type,
                size_bytes=stored.size_bytes,
                sha256=stored.sha256,
                output=output,
                provider=self._saver.config.provider,
                url=stored.url,
            )
            self.saved[ref.name] = ref
            shown = await self._saver.cdn_url(stored.name, stored.size_bytes)
        finally:
            intake.close()
        if shown:
            ref = self.saved[ref.name] = msgspec.structs.replace(ref, cdn_url=shown)
        return ref

    async def settle(self) -> int:
        """The attempt has succeeded: removes what earlier ones left. How many were removed. Raises AssetFailed."""
        return await self._saver.store.sweep(self.naming, self.saved.keys()) if self.saved else 0

    async def discard(self) -> int:
        """The attempt does not count: removes what it saved, where nobody has replaced it. Raises AssetFailed."""
        mark = self.naming.mark
        removed = await asyncio.gather(*(self._saver.store.discard(name, mark) for name in self.saved))
        self.saved.clear()
        return sum(removed)

    async def _measure(self, intake: Intake, output: int, hint: str) -> AssetRef:
        block = await intake.block()
        kind = media_type(block.data, intake.ended)
        block.drop()
        while not intake.ended:
            (await intake.block()).drop()
        name = self.naming.final(output, intake.sha256, kind, hint)
        return AssetRef(name=name, media_type=kind, size_bytes=intake.size_bytes, sha256=intake.sha256, output=output)


def _store(config: AssetConfig, root: Path, free_bytes_min: int) -> Store:
    if config.provider == "local":
        return LocalStore(root, free_bytes_min)
    from empd.assets.azure import Account, AzureStore

    account = Account(
        container=config.container,
        name=config.account,
        url=config.account_url,
        key=config.key,
        sas=config.sas,
        connection_string=config.connection_string,
    )
    return AzureStore(account, config.retries)
