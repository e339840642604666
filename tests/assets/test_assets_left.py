"""What an attempt leaves that dies and gets no successor: it goes once its job has ended, and nothing else does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from assets_places import Place

from empd.assets.naming import Mark
from empd.assets.notes import NOTES, Note, hold
from empd.errors import EmpdError
from empd.job import Outcome, parse_id
from empd.mapping import Mapping
from empd.queue.rows import Kind
from empd.result import FinishedGroup, FinishedJob, Results
from empd.web.archive import Archive
from empd.web.asset_leftovers import AssetLeftovers
from empd.web.gateway import Gateway
from empd.wire.frames import Rows
from tests.azurite import Azurite
from tests.box import Box, mapping_of, service, wait_until

PROVIDERS = pytest.mark.parametrize("provider", ["local", "azure"])


class Kept:
    """A daemon whose workers die, and a look into where its assets are."""

    def __init__(self, provider: str, azurite: Azurite, **settings: Any) -> None:
        entry = azurite.store("left") if provider == "azure" else {"provider": "local"}
        mapping = mapping_of(
            s=service(
                "PythonConnector",
                api_config={"callable": "files:pictures"},
                assets="here",
                worker={"max_concurrent_jobs": 2},
            )
        )
        mapping["assets"] = {"here": entry}
        self.box = Box(mapping, **settings)
        self._provider, self._azurite = provider, azurite

    def names(self, job: str, *, all_files: bool = False) -> set[str]:
        """The job's assets; `all_files`: with what the store has beside them."""
        root = self.box.state_dir / "assets"
        found: Iterable[str] = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
        if self._provider == "azure":
            found = self._azurite.blobs("left")
        return {name for name in found if f"-{job}/" in name and (all_files or "/." not in name)}

    def notes(self) -> set[str]:
        return {path.name for path in (self.box.state_dir / "assets" / NOTES).glob("*")}

    def sweep(self) -> int:
        """One round of the duty, beside the daemon's own."""

        async def once() -> int:
            archive = Archive(self.box.state_dir / "history.db")
            await archive.open()
            gateway = Gateway(f"ipc://{self.box.runtime_dir}/empd.sock")
            try:
                mapping = Mapping.load(self.box.mapping_path)
                return await AssetLeftovers(self.box.state_dir / "assets", mapping, gateway, archive, 3600.0).sweep()
            finally:
                gateway.close()
                await archive.close()

        return asyncio.run(once())


@PROVIDERS
def test_a_job_that_ends_after_its_worker_died_leaves_nothing(provider: str, azurite: Azurite, tmp_path: Path) -> None:
    kept = Kept(provider, azurite, backoff_s=0, max_crashes=9)
    with kept.box as box, box.client() as client:
        waits = {"count": 2, "ends": dict.fromkeys("123", "wait"), "until": str(tmp_path / "never")}
        cancelled, expired = client.submit("s", waits), client.submit("s", waits, total_timeout_s=20)
        wait_until(lambda: all(len(kept.names(job.id)) == 2 for job in (cancelled, expired)), "the files of both")
        # These come first once the worker is back, so that the others get no further attempt.
        first = [client.submit("s", {**waits, "count": 0}, priority=100) for _ in range(2)]
        box.signal("s-0")
        wait_until(lambda: all(client.job(job.id).status().attempts == 1 for job in first), "the worker to be full")
        assert len(kept.notes()) == 2
        assert cancelled.cancel()
        for handle in (cancelled, expired):
            with pytest.raises(EmpdError):
                handle.result(60)
        for handle in (cancelled, expired):
            wait_until(lambda handle=handle: not kept.names(handle.id, all_files=True), "the daemon to remove them")  # type: ignore[misc]
        wait_until(lambda: not kept.notes(), "the notes to go")
        for handle in first:
            handle.cancel()


@PROVIDERS
def test_a_dead_letter_leaves_nothing_and_what_its_retry_saves_stays(provider: str, azurite: Azurite) -> None:
    kept = Kept(provider, azurite, backoff_s=0, max_crashes=1)
    with kept.box as box, box.client() as client:
        handle = client.submit("s", {"count": 1, "ends": {"1": "crash"}})
        with pytest.raises(EmpdError):
            handle.result(60)
        wait_until(lambda: not kept.names(handle.id) and not kept.notes(), "the daemon to remove them")
        assert client.retry([handle.id])["retried"] == [handle.id]
        (ref,) = client.job(handle.id).result(60)["files"]
        kept.sweep()
        assert kept.names(handle.id) == {ref["name"]}


@PROVIDERS
def test_an_attempt_that_lives_keeps_what_it_saves(provider: str, azurite: Azurite, tmp_path: Path) -> None:
    kept = Kept(provider, azurite, backoff_s=0, max_crashes=3)
    with kept.box as box, box.client() as client:
        payload = {"count": 2, "ends": {"1": "crash", "2": "wait"}, "until": str(tmp_path / "go")}
        handle = client.submit("s", payload)
        wait_until(lambda: len(kept.notes()) == 2, "the second attempt to have begun")
        wait_until(lambda: len(kept.names(handle.id)) == 5, "the files of both")
        assert kept.sweep() == 0
        assert len(kept.names(handle.id)) == 5
        (tmp_path / "go").touch()
        names = {ref["name"] for ref in handle.result(60)["files"]}
        assert kept.names(handle.id) == names
        wait_until(lambda: not kept.notes(), "the notes to go")
        assert kept.names(handle.id) == names


def test_a_result_that_counts_keeps_its_files_though_its_worker_died(azurite: Azurite) -> None:
    kept = Kept("local", azurite)
    with kept.box as box, box.client() as client:
        handle = client.submit("s", {"count": 1})
        (ref,) = handle.result(60)["files"]
        wait_until(lambda: not kept.notes(), "the note to go")
        root = box.state_dir / "assets"
        instance = client.status()["instance"]
        # As if its worker had been killed between the broker's commit and the end of its note.
        about = {"service": "s", "place": "local", "instance": instance, "job": parse_id(handle.id), "file_name": ""}
        hold(root, Note(epoch=1 << 40, attempt=1, prefix="", **about)).release()
        kept.sweep()
        wait_until(lambda: not kept.notes(), "the note to go")
        assert kept.names(handle.id) == {ref["name"]}


# --- one round, its questions answered by the test -------------------------------------------------------------------


class Answers:
    """The broker and the history, as the sweep asks them."""

    def __init__(self, *, ended: Any = (), alive: Any = (), remembered: Any = (), unread: Any = ()) -> None:
        self.through_seq = 8 if unread else 9
        self._unread = [FinishedJob(job, outcome, None, 1, 1, attempts) for job, outcome, attempts in unread]
        self._ended = [
            SimpleNamespace(number=job, finished=SimpleNamespace(outcome=o, attempts=n)) for job, o, n in ended
        ]
        self._alive = [SimpleNamespace(id=job, state="delayed") for job in alive]
        self._remembered = {job: SimpleNamespace(outcome=o, attempts=n) for job, o, n in remembered}

    async def look(self, jobs: list[int]) -> Any:
        return self._ended, self._alive

    async def head_seq(self) -> int:
        return 9

    async def replay(self, from_seq: int) -> AsyncIterator[Rows]:
        group = FinishedGroup(msgspec.Raw(msgspec.msgpack.encode([])), self._unread)
        body = msgspec.msgpack.encode(Results(1, "w", 1, [group]))
        assert from_seq == 9
        yield Rows("", [(9, 1, Kind.RESULTS, 0, body)])

    async def call(self, ask: Callable[[Any], Any]) -> Any:
        return ask(
            SimpleNamespace(get=lambda jobs: {job: self._remembered[job] for job in jobs & self._remembered.keys()})
        )


def left_by(place: Place, epoch: int = 5, attempt: int = 1, job: int = 7) -> str:
    """The name of what a dead attempt has saved."""

    async def save() -> str:
        saver = place.saver()
        naming = Mark("ab" * 16, job, epoch)
        ref = await saver.bind(naming, None).save(b"of %d" % epoch)
        hold(place.root, note_of(saver.config.place, epoch, attempt, job)).release()
        await saver.close()
        return ref.name

    return asyncio.run(save())


def note_of(where: str, epoch: int, attempt: int, job: int) -> Note:
    return Note(
        service="s", place=where, instance="ab" * 16, job=job, epoch=epoch, attempt=attempt, prefix="", file_name=""
    )


def round_of(place: Place, answers: Answers, keep_s: float = 3600.0, **entry: Any) -> int:
    config = place.saver(**entry).config
    mapping = SimpleNamespace(services={"s": 1}, asset_config=lambda name: config)
    duty = AssetLeftovers(place.root, mapping, answers, answers, keep_s)  # type: ignore[arg-type]
    return asyncio.run(duty.sweep())


@pytest.mark.parametrize(
    ("answers", "goes"),
    [
        (Answers(ended=[(7, Outcome.CANCELLED, 1)]), True),
        (Answers(ended=[(7, Outcome.DEAD, 1)], alive=[7]), True),
        (Answers(ended=[(7, Outcome.COMPLETED, 2)]), True),  # by a later attempt, which saved nothing
        (Answers(remembered=[(7, Outcome.EXPIRED, 1)]), True),
        (Answers(ended=[(7, Outcome.COMPLETED, 1)]), False),
        (Answers(alive=[7]), False),
        (Answers(alive=[7], remembered=[(7, Outcome.DEAD, 1)]), False),  # it was given another chance
        (Answers(remembered=[(7, Outcome.DEAD, 1)], unread=[(7, Outcome.COMPLETED, 1)]), False),  # and ended again
        (Answers(remembered=[(7, Outcome.DEAD, 1)], unread=[(7, Outcome.COMPLETED, 2)]), True),
        (Answers(unread=[(7, Outcome.CANCELLED, 1)]), True),
        (Answers(), False),
    ],
)
def test_only_what_counts_for_nothing_goes(place: Place, answers: Answers, goes: bool) -> None:
    name = left_by(place)
    assert round_of(place, answers) == goes
    assert (name in place.names()) != goes
    assert not (place.root / name).parent.exists() or place.provider == "azure" or not goes


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_a_mark_that_was_half_written_goes_too(place: Place) -> None:
    name = left_by(place)
    folder = (place.root / name).parent
    (folder / ".1-8c5798ea24b15890.png.empd.part").write_text("{")
    assert round_of(place, Answers(ended=[(7, Outcome.DEAD, 1)])) == 1
    assert not folder.exists()


def test_of_two_attempts_the_later_ones_files_stay(place: Place) -> None:
    early, late = left_by(place, epoch=5, attempt=1), left_by(place, epoch=6, attempt=2)
    assert round_of(place, Answers(ended=[(7, Outcome.COMPLETED, 2)])) == 1
    assert early not in place.names()
    assert late in place.names()
    assert list((place.root / NOTES).iterdir()) == []


def test_notes_of_jobs_that_go_on_do_not_hide_the_others(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("empd.web.asset_leftovers.NOTES_AT_ONCE", 1)
    names = {job: left_by(place, job=job) for job in range(1, 6)}
    assert round_of(place, Answers(alive=[1, 2, 3], ended=[(4, Outcome.DEAD, 1), (5, Outcome.DEAD, 1)])) == 2
    assert place.names() & set(names.values()) == {names[job] for job in (1, 2, 3)}


def test_a_note_of_what_nobody_remembers_goes_in_the_end_and_its_files_stay(place: Place) -> None:
    name = left_by(place)
    round_of(place, Answers())
    assert list((place.root / NOTES).iterdir())
    round_of(place, Answers(), keep_s=-1.0)
    assert not list((place.root / NOTES).iterdir())
    assert name in place.names()


def test_what_lies_in_another_store_is_told_and_left(
    place: Place, azurite: Azurite, capfd: pytest.CaptureFixture[str]
) -> None:
    name = left_by(place)
    elsewhere = {**azurite.store("elsewhere")}
    assert round_of(place, Answers(ended=[(7, Outcome.DEAD, 1)]), **elsewhere) == 0
    assert name in place.names()
    assert "does not save there any more" in capfd.readouterr().err


@pytest.mark.parametrize("place", ["azure"], indirect=True)
def test_a_store_that_fails_is_asked_again(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    name = left_by(place)
    broken = place.saver().config.connection_string.replace("BlobEndpoint=http", "BlobEndpoint=https")
    ended = Answers(ended=[(7, Outcome.DEAD, 1)])
    assert round_of(place, ended, retries=0, connection_string=broken) == 0
    assert "cannot be reached" in capfd.readouterr().err
    assert name in place.names()
    assert round_of(place, ended) == 1
    assert name not in place.names()
