"""A service's storage inside a worker: what a job's end does to its files, and a store that fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from empd.asset import AssetConfig, AssetFailed
from empd.connectors.context import Context, JobDetails, JobView
from empd.worker.assets import AttemptAssets, Storage
from empd.worker.log import Log


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
    return {path.name for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")}


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
