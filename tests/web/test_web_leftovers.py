"""Blobs that nothing refers to go; every one that something refers to stays."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from empd.errors import NotRunning
from empd.loading import load
from empd.memory.arena import Arena
from empd.web.archive import Archive
from empd.web.gateway import Gateway
from empd.web.leftovers import Leftovers
from tests.box import Box, wait_until


def arena_of(daemon: Box) -> Arena:
    settings = load({"state_dir": str(daemon.state_dir), "runtime_dir": str(daemon.runtime_dir)}, {})
    return Arena(settings.spool_dir, settings.volatile_dir)


def blobs(arena: Arena) -> dict[str, Path]:
    return {path.name: path for path in arena.spool_dir.glob("??/*")}


def age(arena: Arena, hours: float) -> None:
    then_s = time.time() - hours * 3600
    for path in blobs(arena).values():
        os.utime(path, (then_s, then_s))


def sweep(daemon: Box, arena: Arena, archive_path: Path | None = None) -> int:
    """One round of the duty, beside the daemon's own."""

    async def once() -> int:
        archive = Archive(archive_path or daemon.state_dir / "history.db")
        await archive.open()
        gateway = Gateway(f"ipc://{daemon.runtime_dir}/empd.sock")
        try:
            return await Leftovers(gateway, archive, arena).sweep()
        finally:
            gateway.close()
            await archive.close()

    return asyncio.run(once())


def test_only_what_nothing_refers_to_goes(box: Callable[..., Box], tmp_path: Path) -> None:
    daemon = box()
    arena = arena_of(daemon)
    content = os.urandom(200_000)
    with daemon.client() as client:
        ended = client.submit("noop", content)
        ended.result(60)
        wait_until(lambda: client.status()["consumers"].get("history", 0) >= 5, "history to hold the result")
        client.operate("drain")
        waiting = client.submit("noop", content)
        assert client.flush(10)
        in_use = set(blobs(arena))
        assert len(in_use) == 2  # a result and a payload
        orphan = arena.put(content, durable=True, encoding="bytes")
        unfinished = arena.spool_dir / orphan.id[:2] / f"{'ab' * 16}.part"
        unfinished.write_bytes(b"x")
        assert sweep(daemon, arena) == 0  # too young
        age(arena, 1.05)
        assert sweep(daemon, arena) == 0  # may have been too young when the questions were asked
        age(arena, 3)
        fresh = arena.put(content, durable=True, encoding="bytes")
        # With a history that has not read a row yet, the rows themselves say what is in use.
        assert sweep(daemon, arena, tmp_path / "empty.db") == 2
        assert set(blobs(arena)) == in_use | {fresh.id}
        assert sweep(daemon, arena) == 0
        client.operate("resume")
        assert waiting.result(60) is not None
        assert client.job(ended.id).result(60) is not None


def test_nothing_goes_while_the_broker_does_not_answer(tmp_path: Path) -> None:
    arena = Arena(tmp_path / "spool", tmp_path / "volatile")
    arena.put(b"x", durable=True, encoding="bytes")
    age(arena, 5)

    async def once() -> None:
        archive = Archive(tmp_path / "history.db")
        await archive.open()
        gateway = Gateway(f"ipc://{tmp_path}/nobody.sock")
        try:
            with pytest.raises(NotRunning):
                await Leftovers(gateway, archive, arena).sweep()
        finally:
            gateway.close()
            await archive.close()

    asyncio.run(once())
    assert len(blobs(arena)) == 1


def test_the_broker_names_what_unfinished_jobs_refer_to(box: Callable[..., Box]) -> None:
    daemon = box()
    with daemon.client() as client:
        client.operate("drain")
        client.submit("noop", bytes(100_000))
        assert client.flush(10)
        [blob] = blobs(arena_of(daemon))

    async def ask(ids: list[str]) -> set[str]:
        gateway = Gateway(f"ipc://{daemon.runtime_dir}/empd.sock")
        try:
            return (await gateway.blobs_in_use(ids))[0]
        finally:
            gateway.close()

    many = [f"{number:032x}" for number in range(25_000)]
    assert asyncio.run(ask([*many, blob])) == {blob}
    assert asyncio.run(ask([])) == set()
