"""History kept from the journal's rows, and its read socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from web_broker import BrokerDouble
from web_harness import Web, wait_for

from empd import clock
from empd.job import JobOptions, Outcome, format_id
from empd.memory.arena import Arena
from empd.payload import FRAME_BYTES_MAX, BlobRef
from empd.queue.rows import Kind
from empd.result import FinishedGroup, FinishedJob, JobError, Results
from empd.store.history import History
from empd.store.record import FinishedRecord
from empd.web import records
from empd.web.archive import Archive
from empd.web.gateway import Gateway
from empd.web.history_socket import answer
from empd.web.projector import JOBS_PER_TRANSACTION, Projector
from empd.web.series import Tally
from empd.web.transitions import Row
from empd.wire import codec
from empd.wire.frames import HistoryAnswer, HistoryAsk, Reset, Rows
from empd.wire.telemetry import JobLog

OPTIONS = JobOptions(service="s", priority=60, customer_id="c", labels={"k": "v"})


def results(*jobs: FinishedJob) -> Results:
    return Results(1, "gpu0", clock.now().wall_ns, [FinishedGroup(msgspec.Raw(codec.encode(OPTIONS)), list(jobs))])


def job(number: int, result: bytes | BlobRef | None = b"\x01", error: JobError | None = None) -> FinishedJob:
    outcome = Outcome.FAILED if error else Outcome.COMPLETED
    return FinishedJob(number, outcome, result, 1_000, 2_000, 1, error, {"tokens": 5.0})


def kept(folder: Path, given: Results) -> list[FinishedRecord]:
    """What history gives back of these results."""
    history = History.open(folder / "history.db")
    history.apply(1, records.to_history(given))
    found = history.get(each.id for group in given.groups for each in group.jobs)
    history.close()
    return sorted(found.values(), key=lambda record: record.id)


def test_what_may_have_been_done_twice_is_kept_and_told(tmp_path: Path) -> None:
    [record] = kept(tmp_path, results(msgspec.structs.replace(job(5), doubt="twice?")))
    assert records.to_finished(record).doubt == "twice?"
    assert records.to_json(record)["doubt"] == "twice?"


def ask(web: Web, data: bytes, timeout_ms: int = 5_000) -> Any:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{web.runtime_dir}/history.sock")
        socket.send(data)
        return codec.decode_history_frame(socket.recv()) if socket.poll(timeout_ms) else None


def kept_through(broker: BrokerDouble, seq: int) -> None:
    wait_for(lambda: broker.acked.get("history", 0) >= seq, f"history up to row {seq}")


class OneFrame(Gateway):
    """Follows a journal that has one frame of rows to tell."""

    def __init__(self, rows: list[Row]) -> None:
        super().__init__("")
        self._rows = rows
        self.taken = asyncio.Event()

    async def follow(
        self,
        consumer: str,
        from_seq: int,
        kinds: Iterable[int] = (),
        joined: Callable[[str], Awaitable[int]] | None = None,
    ) -> AsyncGenerator[Rows | Reset, None]:
        assert joined is not None
        await joined("instance")
        yield Rows(consumer, self._rows)
        self.taken.set()
        await asyncio.Event().wait()


def test_a_frame_of_many_jobs_is_written_in_transactions_of_a_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, int]] = []
    apply = History.apply

    def noted(self: History, through_seq: int, finished: Iterable[FinishedRecord]) -> None:
        records = list(finished)
        written.append((through_seq, len(records)))
        apply(self, through_seq, records)

    monkeypatch.setattr(History, "apply", noted)
    row_jobs, row_count = 256, 40
    bodies = [results(*(job(row * row_jobs + number) for number in range(row_jobs))) for row in range(row_count)]
    rows = [(seq, 1, int(Kind.RESULTS), 0, codec.encode(body)) for seq, body in enumerate(bodies, 1)]

    async def project() -> dict[str, int]:
        archive, gateway = Archive(tmp_path / "history.db"), OneFrame(rows)
        await archive.open()
        projector = Projector(gateway, archive, Tally())
        projector.start()
        await asyncio.wait_for(gateway.taken.wait(), 60)
        assert archive.through_seq == row_count
        stats = await archive.call(lambda history: history.stats())
        await projector.stop()
        await archive.close()
        return stats

    stats = asyncio.run(project())
    assert (stats["rows"], stats["cursor"]) == (row_jobs * row_count, row_count)
    assert [seq for seq, _ in written] == [8, 16, 24, 32, 40]
    assert all(count < JOBS_PER_TRANSACTION + row_jobs for _, count in written)


def test_socket_answers_what_history_holds(web: Web, broker: BrokerDouble) -> None:
    failed = job(12, None, JobError("timeout", "slow", "stack"))
    seq = broker.add_row(Kind.RESULTS, results(job(11), failed))
    kept_through(broker, seq)
    found = ask(web, codec.encode(HistoryAsk(3, [11, 12, 13])))
    assert isinstance(found, HistoryAnswer)
    assert (found.request, found.through_seq, found.expired) == (3, seq, [])
    told = {each.id: each for group in found.groups for each in group.jobs}
    assert told == {11: job(11), 12: failed}
    assert codec.decode_options(bytes(found.groups[0].options)) == OPTIONS


def test_socket_survives_any_bytes(web: Web) -> None:
    for data in (b"", b"\xc1", b"\x93\x01\x02\x03", codec.encode(HistoryAnswer(1, 1, [])), b"x" * 500_000):
        assert ask(web, data, 50) is None
    assert isinstance(ask(web, codec.encode(HistoryAsk(1, [1]))), HistoryAnswer)


def test_history_goes_on_behind_its_cursor(web: Web, broker: BrokerDouble) -> None:
    kept_through(broker, broker.add_row(Kind.RESULTS, results(job(1))))
    web.restart()
    seq = broker.add_row(Kind.RESULTS, results(job(2)))
    kept_through(broker, seq)
    assert [each.from_seq for each in broker.subscribed if each.consumer == "history"][-1] == seq
    assert [each["id"] for each in web.get("/v1/jobs")["jobs"]] == [format_id(2), format_id(1)]


def test_history_follows_over_a_broker_restart(web: Web, broker: BrokerDouble) -> None:
    kept_through(broker, broker.add_row(Kind.RESULTS, results(job(1))))
    broker.stop()
    seq = broker.add_row(Kind.RESULTS, results(job(2)))
    broker.start()
    kept_through(broker, seq)
    assert len(web.get("/v1/jobs")["jobs"]) == 2


def test_trimmed_rows_are_passed_over(broker: BrokerDouble, start_web: Callable[..., Web]) -> None:
    broker.first_seq = 500
    seq = broker.add_row(Kind.RESULTS, results(job(1)))
    web = start_web()
    kept_through(broker, seq)
    assert len(web.get("/v1/jobs")["jobs"]) == 1


def test_another_journal_begins_anew_and_keeps_what_was(web: Web, broker: BrokerDouble) -> None:
    for number in range(1, 5):
        kept_through(broker, broker.add_row(Kind.RESULTS, results(job(number))))
    broker.stop()
    broker.rows.clear()
    broker.acked.clear()
    broker.instance = "cd" * 16
    broker.add_row(Kind.RESULTS, results(job(100)))
    broker.start()
    web.restart()
    kept_through(broker, 1)
    assert len(web.get("/v1/jobs")["jobs"]) == 5


def test_damaged_rows_do_not_stop_history(web: Web, broker: BrokerDouble) -> None:
    broker.add_row(Kind.RESULTS, b"\xc1 damaged")
    bad_options = Results(1, "", 1, [FinishedGroup(msgspec.Raw(b"\x01"), [job(5)])])
    broker.add_row(Kind.RESULTS, bad_options)
    kept_through(broker, broker.add_row(Kind.RESULTS, results(job(6))))
    assert [each["id"] for each in web.get("/v1/jobs")["jobs"]] == [format_id(6)]


def test_a_burst_of_telemetry_is_taken_whole(web: Web) -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.connect(f"ipc://{web.runtime_dir}/telemetry.sock")
        for number in range(3_000):
            socket.send(codec.encode(JobLog(1, 1, number, str(number))))
        last = wait_for(
            lambda: (lines := web.get(f"/v1/jobs/{format_id(1)}/log")["lines"]) and len(lines) == 3_000 and lines,
            "all lines of the burst",
        )
        assert [line["text"] for line in last] == [str(number) for number in range(3_000)]


# --- without a process -----------------------------------------------------------------------------------------------


def test_an_answer_never_exceeds_a_frame(tmp_path: Any) -> None:
    history = History.open(tmp_path / "history.db")
    arena = Arena(tmp_path / "spool", tmp_path / "volatile")
    big = b"\xc4" + b"x" * 60_000
    history.apply(1, records.to_history(results(*(job(number, big) for number in range(1, 41)))))
    data = answer(history, HistoryAsk(1, list(range(1, 41))), arena)
    assert len(data) <= FRAME_BYTES_MAX
    told = [each for group in codec.decode_history_frame(data).groups for each in group.jobs]  # type: ignore[union-attr]
    assert len(told) == 40
    moved = [each.result for each in told if isinstance(each.result, BlobRef)]
    assert moved
    assert all(arena.read(ref) == big for ref in moved)
    evidence = JobError("timeout", "slow", "e" * 50_000)
    history.apply(2, records.to_history(results(*(job(number, None, evidence) for number in range(50, 90)))))
    assert len(answer(history, HistoryAsk(2, list(range(50, 90))), arena)) <= FRAME_BYTES_MAX
    history.close()


def test_records_come_back_as_they_went_in(tmp_path: Path) -> None:
    blob = BlobRef("ab" * 16, 5, 7, True, "json")
    given = results(job(1), job(2, blob), job(3, None, JobError("internal", "m", "e")))
    [group] = records.to_groups(kept(tmp_path, given))
    assert group.jobs == given.groups[0].jobs
    assert codec.decode_options(bytes(group.options)) == OPTIONS
