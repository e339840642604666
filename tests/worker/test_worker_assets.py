"""A service's storage inside a worker: what a job's end does to its files, and a store that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from empd.asset import AssetConfig, AssetFailed
from empd.assets.naming import Mark
from empd.assets.notes import NOTES, left
from empd.connectors.context import Context, JobDetails, JobView
from empd.errors import FailureClass
from empd.memory.arena import Arena
from empd.worker.assets import AttemptAssets, Storage
from empd.worker.log import Log
from empd.worker.outbox import Outbox
from empd.worker.outcome import Outcomes


class Port:
    """The part of a worker's port that assets need."""

    instance = "ab" * 16

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def assets(self, context: Context) -> AttemptAssets:
        return self.storage.attempt(context)


def storage_at(root: Path, config: AssetConfig | None = None) -> Storage:
    return Storage("s", config or AssetConfig(), root, 0, Log("error"))


def attempt(storage: Storage, number: int, payload: Any = None) -> AttemptAssets:
    """The files of the job's `number`-th attempt."""
    job = JobView(7, number, number, JobDetails(), msgspec.msgpack.encode(payload))
    found = Context(Port(storage), job, 1).assets  # type: ignore[arg-type]
    assert isinstance(found, AttemptAssets)
    return found


def files(root: Path) -> set[str]:
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return {path.name for path in found if not any(part.startswith(".") for part in path.parts)}


def notes(root: Path) -> set[str]:
    return {path.name for path in (root / NOTES).glob("*")}


def left_at(root: Path) -> set[int]:
    """The attempts whose notes nobody holds."""
    found = list(left(root))
    for held in found:
        held.release()
    return {held.note.attempt for held in found}


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


def test_the_attempt_that_counts_sweeps_and_the_one_that_does_not_takes_back(tmp_path: Path) -> None:
    async def run() -> None:
        storage = storage_at(tmp_path)
        killed, failed, done = (attempt(storage, number) for number in (1, 2, 3))
        await killed.save(b"killed")
        await failed.save(b"failed")
        await failed.discard()
        assert len(files(tmp_path)) == 1
        ref = await done.save(b"done")
        await done.settle()
        assert files(tmp_path) == {ref.name.rpartition("/")[2]}
        await storage.close()

    asyncio.run(run())


def test_a_note_goes_when_the_outcome_is_durable_or_the_files_are_gone(tmp_path: Path) -> None:
    async def run() -> None:
        storage = storage_at(tmp_path)
        done, failed, unwanted, nothing = (attempt(storage, number) for number in (1, 2, 3, 4))
        for each in (done, failed, unwanted):
            await asyncio.gather(*(each.save(b"x", output=output) for output in range(2)))
        await nothing.settle()
        nothing.settled(True)
        await attempt(storage, 5, {"save_assets": False}).save(b"x")
        assert notes(tmp_path) == {f"0000000000007-{number}" for number in (1, 2, 3)}
        assert left_at(tmp_path) == set()
        await done.settle()
        assert len(notes(tmp_path)) == 3
        done.settled(True)
        await until(lambda: len(notes(tmp_path)) == 2)
        await failed.discard()
        await until(lambda: notes(tmp_path) == {"0000000000007-3"})
        unwanted.settled(False)
        await until(lambda: left_at(tmp_path) == {3})
        await storage.close()

    asyncio.run(run())


def test_a_note_is_kept_until_the_broker_has_settled_the_outcome(tmp_path: Path) -> None:
    async def run() -> None:
        storage = storage_at(tmp_path)
        files_of = attempt(storage, 1)
        outbox = Outbox(lambda frame: True, lambda callback: None)
        hosted: Any = SimpleNamespace(tally=SimpleNamespace(completed=0))
        outcomes = Outcomes(outbox, Arena(tmp_path / "spool", tmp_path / "volatile"), False, lambda at_ns: None)
        await files_of.save(b"x")
        await outcomes.finish(hosted, files_of._context, {"value": 1})
        await asyncio.to_thread(lambda: None)
        assert (notes(tmp_path), left_at(tmp_path)) == ({"0000000000007-1"}, set())
        outbox.flush()
        outbox.settle(1)
        await until(lambda: notes(tmp_path) == set())
        await storage.close()

    asyncio.run(run())


def test_a_note_stays_for_what_could_not_be_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        storage = storage_at(tmp_path)
        torn, stuck = attempt(storage, 1), attempt(storage, 2)
        await torn.save(b"first")
        saving = asyncio.create_task(torn.save(slowly(), output=1))
        await asyncio.sleep(0)
        saving.cancel()
        await asyncio.wait((saving,))
        await torn.discard()  # whether the second arrived, nobody knows
        await stuck.save(b"x")
        monkeypatch.setattr(storage.saver.store, "discard", fails)
        await stuck.discard()
        await until(lambda: left_at(tmp_path) == {1, 2})
        await storage.close()

    async def fails(name: str, mark: Mark) -> bool:
        raise AssetFailed(FailureClass.UNAVAILABLE, "the store is away", upstream=True)

    async def slowly() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(60)

    asyncio.run(run())


def test_a_note_that_cannot_be_made_stops_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        storage = Storage("s", AssetConfig(), tmp_path, 0, Log("warning"))
        (tmp_path / NOTES).write_text("no folder")
        done = attempt(storage, 1)
        assert (await done.save(b"x")).url
        await done.settle()
        done.settled(True)
        await storage.close()

    asyncio.run(run())
    assert "asset_note_failed" in capfd.readouterr().err


def test_an_attempt_that_saved_nothing_asks_no_store(tmp_path: Path) -> None:
    async def run() -> None:
        storage = storage_at(tmp_path / "file" / "below")
        (tmp_path / "file").write_text("no folder")
        unused = attempt(storage, 2)
        await unused.settle()
        await unused.discard()
        ref = await attempt(storage, 2, {"save_assets": False}).save(b"x")
        assert ref.url is None
        assert await storage.problem() == ""

    asyncio.run(run())


def test_a_store_that_fails_is_told_once_and_asked_until_it_is_well(tmp_path: Path) -> None:
    async def run() -> None:
        told: list[bool] = []
        root = tmp_path / "file"
        root.write_text("no folder")
        storage = storage_at(root)
        storage.on_failure = lambda: told.append(True)
        for number in (1, 2):
            with pytest.raises(AssetFailed, match="cannot be used for assets"):
                await attempt(storage, number).save(b"x")
        assert told == [True]
        assert (await storage.problem()).startswith("assets: ")
        root.unlink()
        assert await storage.problem() == ""
        assert (await attempt(storage, 3).save(b"x")).url
        await storage.close()

    asyncio.run(run())


def test_a_fault_of_the_job_does_not_stop_the_service(tmp_path: Path) -> None:
    async def run() -> None:
        storage = storage_at(tmp_path)
        storage.on_failure = lambda: pytest.fail("the store is well")
        for content, payload in (("no base64!", None), (b"x", {"ctx": {"prefix": "../up"}})):
            with pytest.raises(AssetFailed):
                await attempt(storage, 1, payload).save(content)
        assert await storage.problem() == ""

    asyncio.run(run())


def test_what_cannot_be_tidied_does_not_fail_the_job(tmp_path: Path) -> None:
    async def run() -> None:
        storage = storage_at(tmp_path)
        done = attempt(storage, 2)
        ref = await done.save(b"done")
        (tmp_path / ref.name).parent.rename(tmp_path / "elsewhere")
        (tmp_path / ref.name).parent.write_text("no folder any more")
        await done.settle()
        await done.discard()
        await storage.close()

    asyncio.run(run())


def test_a_disk_without_room_is_the_stores_fault(tmp_path: Path) -> None:
    async def run() -> None:
        storage = Storage("s", AssetConfig(), tmp_path, 1 << 60, Log("error"))
        with pytest.raises(AssetFailed, match="disk_free_min_bytes") as caught:
            await attempt(storage, 1).save(b"x")
        assert caught.value.upstream
        assert caught.value.retry_after_s
        assert files(tmp_path) == set()

    asyncio.run(run())


def test_secrets_of_the_configuration_are_hidden_in_logs(tmp_path: Path) -> None:
    log = Log("error")
    Storage("s", AssetConfig(provider="azure", key="c2VjcmV0LWtleQ=="), tmp_path, 0, log)
    Storage("t", AssetConfig(provider="azure", sas="?sv=1&sig=abc%3D"), tmp_path, 0, log)
    connection = "AccountName=a;AccountKey=YW5vdGhlcg==;BlobEndpoint=http://127.0.0.1"
    Storage("u", AssetConfig(provider="azure", connection_string=connection), tmp_path, 0, log)
    assert log.redact("key c2VjcmV0LWtleQ== told") == "key *** told"
    assert log.redact("http://a/c?sv=1&sig=abc%3D") == "http://a/c?***"
    assert log.redact("the key YW5vdGhlcg== of a") == "the key *** of a"
