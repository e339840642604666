"""Removes the assets of attempts that died and got no successor: their job was cancelled, expired or dead-lettered.

Each such attempt has left a note that nobody holds (`empd/assets/notes.py`). While its job goes on nothing is done: the
attempts to come replace and sweep what it left. Once the job has ended, what this attempt and those before it saved
goes, unless it is this attempt's result that counts. Epochs of one job rise: what a later attempt saved is not touched.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from empd.asset import AssetFailed
from empd.assets.notes import Held, left
from empd.assets.saver import Saver
from empd.errors import EmpdError
from empd.job import Outcome, format_id
from empd.mapping import Mapping
from empd.web.archive import Archive
from empd.web.duty import Duty
from empd.web.gateway import Gateway
from empd.web.leftovers import unread_ends

EVERY_S = 5.0
TAKES_S_MAX = 600.0
NOTES_AT_ONCE = 256


class End(NamedTuple):
    """How a job ended: its outcome, and how many attempts it took. Where it completed, the last one counts."""

    outcome: int
    attempts: int


class AssetLeftovers(Duty):
    """A background duty of the web process. `removed` counts assets."""

    name = "asset-leftovers"

    def __init__(self, root: Path, mapping: Mapping, gateway: Gateway, archive: Archive, keep_s: float) -> None:
        super().__init__()
        self._root = root
        self._mapping = mapping
        self._gateway = gateway
        self._archive = archive
        self._keep_s = keep_s
        self._told: set[str] = set()
        self.removed = 0

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(TAKES_S_MAX):
                    self.removed += await self.sweep()
            except (EmpdError, OSError):
                # The broker is away or slow, history is being rebuilt, or the disk is in trouble; the notes stay.
                pass
            await asyncio.sleep(EVERY_S)

    async def sweep(self) -> int:
        """Looks at the notes of dead attempts once; how many assets it removed. Raises NotRunning."""
        notes = left(self._root)
        removed = 0
        while found := await asyncio.to_thread(lambda: list(itertools.islice(notes, NOTES_AT_ONCE))):
            removed += await self._look_at(found)
        return removed

    async def _look_at(self, found: Sequence[Held]) -> int:
        savers: dict[str, Saver] = {}
        removed = 0
        try:
            ends, unknown = await self._ends(sorted({held.note.job for held in found}))
            for held in found:
                end = ends.get(held.note.job)
                if end is not None:
                    removed += await self._settle(held, end, savers)
                elif held.note.job in unknown and held.age_s > self._keep_s:
                    held.drop()  # its job is not remembered any more, and with it whether the attempt counted
        finally:
            for held in found:
                held.release()
            for saver in savers.values():
                await saver.close()
        return removed

    async def _ends(self, jobs: Sequence[int]) -> tuple[dict[int, End], set[int]]:
        """Those of the jobs that have ended, and those that nobody knows."""
        ended, statuses = await self._gateway.look(list(jobs))
        ends = {
            handle.number: End(handle.finished.outcome, handle.finished.attempts)
            for handle in ended
            if handle.finished is not None
        }
        alive = {status.id for status in statuses if status.state != "unknown"}
        asked = set(jobs) - ends.keys() - alive
        if not asked:
            return ends, asked
        # What history has not read yet comes after it: of a job that was retried it tells the end before.
        read_seq, head_seq = self._archive.through_seq, await self._gateway.head_seq()
        found = await self._archive.call(lambda history: history.get(asked))
        ends.update((job, End(record.outcome, record.attempts)) for job, record in found.items())
        for job in await unread_ends(self._gateway, read_seq, head_seq):
            if job.id in asked:
                ends[job.id] = End(job.outcome, job.attempts)
        return ends, asked - ends.keys()

    async def _settle(self, held: Held, end: End, savers: dict[str, Saver]) -> int:
        note, removed = held.note, 0
        if end != End(Outcome.COMPLETED, note.attempt):
            saver = self._saver(note, savers)
            try:
                removed = await saver.remove_left(note.naming) if saver is not None else 0
            except AssetFailed as error:
                self._say(note, error.message)
                return 0
        await asyncio.to_thread(held.drop)
        return removed

    def _saver(self, note: Any, savers: dict[str, Saver]) -> Saver | None:
        """Of the note's store; None when its service saves elsewhere now."""
        config = self._mapping.asset_config(note.service) if note.service in self._mapping.services else None
        if config is None or config.place != note.place:
            self._say(note, f"service {note.service} does not save there any more")
            return None
        return savers.setdefault(note.service, Saver(config, self._root, 0))

    def _say(self, note: Any, reason: str) -> None:
        """Once for each attempt and reason."""
        text = f"web: assets of job {format_id(note.job)} (epoch {note.epoch}) are left in {note.place}: {reason}\n"
        if text not in self._told:
            if len(self._told) > NOTES_AT_ONCE:
                self._told.clear()
            self._told.add(text)
            sys.stderr.write(text)
