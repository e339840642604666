"""The history: bulk writes with their cursor, searches against a list, retention, files that cannot be used."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empd.clock import NS_PER_S
from empd.job import JobOptions, Outcome
from empd.payload import BlobRef
from empd.result import FinishedJob, JobError
from empd.store import history as history_module
from empd.store.history import Filter, History, HistoryError
from empd.store.record import Ended, FinishedRecord, from_stored, to_stored

DAY_S = 86_400
START_NS = 1_700_000_000 * NS_PER_S


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


@pytest.fixture
def history(file: Path) -> Iterator[History]:
    opened = History.open(file)
    yield opened
    opened.close()


def record(number: int, **fields: object) -> FinishedRecord:
    """The job `number` of session 1, which ended that many seconds after the start."""
    values = {"id": 1 << 32 | number, "outcome": 0, "service": "s", "finished_ns": START_NS + number * NS_PER_S}
    return FinishedRecord(**{**values, **fields})  # type: ignore[arg-type]


def stored(records: list[FinishedRecord]) -> list[Ended]:
    """Records as history takes them: each a group of its own."""
    return [group_of([found]) for found in records]


def group_of(records: list[FinishedRecord]) -> Ended:
    """Records that share all columns but those of single jobs."""
    first = records[0]
    options = JobOptions(
        service=first.service,
        priority=first.priority,
        customer_id=first.customer_id or None,
        workflow_id=first.workflow_id or None,
        labels=first.labels or None,
    )
    return to_stored([job_of(found) for found in records], options, first.worker, first.finished_ns)


def job_of(found: FinishedRecord) -> FinishedJob:
    return FinishedJob(
        found.id,
        found.outcome,
        found.result if found.blob is None else found.blob,
        found.submitted_ns,
        found.started_ns,
        found.attempts,
        JobError(found.failure, found.message, found.evidence) if found.failure else None,
        found.usage or None,
        found.doubt,
    )


def full_record() -> FinishedRecord:
    return FinishedRecord(
        id=(1 << 64) - 5,
        outcome=Outcome.DEAD,
        service="images",
        finished_ns=START_NS,
        submitted_ns=START_NS - 2,
        started_ns=START_NS - 1,
        result=b"\x00\xff" * 50,
        failure="worker_crashed",
        message="it died – twice",
        evidence="SIGSEGV",
        attempts=3,
        priority=99,
        worker="gpu0",
        customer_id="c",
        workflow_id="w",
        labels={'quote"d': "ü", "a": "b"},
        usage={"tokens": 12.5},
        doubt="it may have been done twice",
    )


def test_a_record_comes_back_as_it_was(history: History, file: Path) -> None:
    blob = record(2, blob=BlobRef("ab" * 16, 1 << 40, 7, False, "msgpack"))
    history.apply(7, stored([full_record(), blob, record(3)]))
    wanted = [full_record().id, blob.id, 99]
    assert history.get(wanted) == {full_record().id: full_record(), blob.id: blob}
    history.close()
    again = History.open(file)
    assert (again.cursor, again.moved_aside) == (7, "")
    assert again.get(wanted)[full_record().id] == full_record()
    again.close()


def test_a_row_of_an_earlier_version_has_no_doubt() -> None:
    common, [(job_id, outcome, outline, result)] = group_of([full_record()])
    shorter = msgspec.msgpack.encode(msgspec.msgpack.decode(outline)[:-1])
    row = (1, job_id, common.finished_ns, outcome, *common[1:], shorter, result)
    assert from_stored(row, 0) == msgspec.structs.replace(full_record(), doubt="")


@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 200])
def test_a_group_is_written_row_by_row(history: History, count: int) -> None:
    """However many rows a statement has: each job has a position of its own, in their order."""
    jobs = [record(n, finished_ns=START_NS, attempts=n, result=b"%d" % n, labels={"a": "b"}) for n in range(count)]
    history.apply(1, [group_of(jobs), group_of([record(999)])])
    assert history.get(job.id for job in jobs) == {job.id: job for job in jobs}
    page, following = history.search(Filter(), None, count + 2)
    assert page == [record(999), *reversed(jobs)]
    assert following is None


def test_get_takes_many_ids(history: History) -> None:
    history.apply(1, stored([record(n) for n in range(2000)]))
    assert len(history.get(1 << 32 | n for n in range(5000))) == 2000


def test_rows_and_cursor_go_together(history: History, file: Path) -> None:
    history.apply(5, stored([record(1)]))
    history.apply(5, stored([record(2)]))  # sent again after a lost acknowledgement
    history.apply(4, stored([record(3)]))
    assert (history.stats()["rows"], history.cursor) == (1, 5)
    history.apply(6, [])
    assert history.cursor == 6
    with pytest.raises(HistoryError) as caught:
        history.apply(9, stored([record(4), record(5, service=None)]))
    assert not caught.value.damaged
    assert (history.stats()["rows"], history.cursor) == (1, 6)
    history.apply(9, stored([record(4)]))  # a failed write leaves it usable
    assert history.stats()["rows"] == 2


def test_a_retried_job_replaces_its_first_end(history: History) -> None:
    history.apply(1, stored([record(1, outcome=Outcome.DEAD), record(2)]))
    history.apply(2, stored([record(1, result=b"now")]))
    assert history.get([record(1).id])[record(1).id].result == b"now"
    assert [found.id & 0xFF for found in history.search(Filter(), None, 10)[0]] == [1, 2]
    assert history.stats()["dead_lettered"] == 0


def test_following_another_journal_sets_the_cursor(history: History, file: Path) -> None:
    assert history.instance == ""
    history.follow("one", 0)
    history.apply(100, stored([record(1)]))
    history.follow("two", 3)
    history.apply(4, stored([record(2)]))
    history.close()
    again = History.open(file)
    assert (again.instance, again.cursor, again.stats()["rows"]) == ("two", 4, 2)
    again.close()


names = st.sampled_from(["a", "b", ""])
ended = st.builds(
    lambda **fields: fields,
    outcome=st.sampled_from([0, 0, 1, 4]),
    service=st.sampled_from(["s", "t"]),
    worker=names,
    customer_id=names,
    workflow_id=names,
    labels=st.dictionaries(st.sampled_from(["k", "l"]), st.sampled_from(["v", "w"]), max_size=2),
)
maybe = st.none() | st.sampled_from(["a", "b"])
moments = st.none() | st.integers(0, 30).map(lambda second: START_NS + second * NS_PER_S)
filters = st.builds(
    Filter,
    service=st.none() | st.sampled_from(["s", "t", "u"]),
    outcome=st.none() | st.sampled_from([0, 1, 4]),
    customer_id=maybe,
    workflow_id=maybe,
    worker=maybe,
    label=st.none() | st.tuples(st.sampled_from(["k", "l"]), st.sampled_from(["v", "w"])),
    since_ns=moments,
    until_ns=moments,
)


def matches(found: FinishedRecord, wanted: Filter) -> bool:
    """The filter, once more and plainly."""
    columns = ("service", "outcome", "customer_id", "workflow_id", "worker")
    return (
        all(getattr(wanted, name) in (None, getattr(found, name)) for name in columns)
        and (wanted.label is None or found.labels.get(wanted.label[0]) == wanted.label[1])
        and (wanted.since_ns is None or found.finished_ns >= wanted.since_ns)
        and (wanted.until_ns is None or found.finished_ns < wanted.until_ns)
    )


@settings(max_examples=150, deadline=None)
@given(jobs=st.lists(ended, max_size=30), wanted=filters, limit=st.integers(1, 7), scan=st.sampled_from([1, 3, 1000]))
def test_pages_of_a_search_are_the_matching_records(
    jobs: list[dict[str, object]], wanted: Filter, limit: int, scan: int
) -> None:
    records = [record(number, **fields) for number, fields in enumerate(jobs)]
    expected = [found for found in reversed(records) if matches(found, wanted)]
    bound, history_module.SCAN_ROWS_MAX = history_module.SCAN_ROWS_MAX, scan
    try:
        with tempfile.TemporaryDirectory(prefix="empd-", dir="/dev/shm") as folder:
            history = History.open(Path(folder, "history.db"))
            history.apply(1, stored(records))
            found: list[FinishedRecord] = []
            cursor, pages = None, 0
            while pages == 0 or cursor is not None:
                page, cursor = history.search(wanted, cursor, limit)
                assert len(page) <= limit
                found += page
                pages += 1
                assert pages <= 2 * len(records) + 2
            history.close()
    finally:
        history_module.SCAN_ROWS_MAX = bound
    assert found == expected


def test_pages_do_not_move_while_jobs_end(history: History) -> None:
    history.apply(1, stored([record(n) for n in range(10)]))
    first, cursor = history.search(Filter(), None, 4)
    history.apply(2, stored([record(n) for n in range(10, 20)]))
    second, _ = history.search(Filter(), cursor, 4)
    assert [found.id & 0xFF for found in first + second] == [9, 8, 7, 6, 5, 4, 3, 2]


def test_a_search_uses_the_indexes(history: History, file: Path) -> None:
    connection = sqlite3.connect(file)
    for column, index in (
        ("service = 's'", "finished_service"),
        ("outcome <> 0 AND outcome = ?", "finished_outcome"),
        ("customer_id = ?", "finished_customer"),
        ("workflow_id = ?", "finished_workflow"),
    ):
        query = f"SELECT position FROM finished WHERE position < 9 AND {column} ORDER BY position DESC LIMIT 5"
        plan = str(connection.execute(f"EXPLAIN QUERY PLAN {query}", ("1",) * query.count("?")).fetchall())
        assert index in plan
        assert "TEMP B-TREE" not in plan
    connection.close()


def test_results_go_before_rows(history: History) -> None:
    blob = BlobRef("cd" * 16, 5, 6)
    jobs = [record(0, result=b"r"), record(1, blob=blob), record(2, outcome=1), record(10 * DAY_S, result=b"x")]
    history.apply(1, stored(jobs))
    now_ns = START_NS + 10 * DAY_S * NS_PER_S
    assert history.expire(now_ns, DAY_S, 30 * DAY_S, 2) == 2  # bounded
    assert history.expire(now_ns, DAY_S, 30 * DAY_S, 2) == 1
    assert history.expire(now_ns, DAY_S, 30 * DAY_S, 2) == 0
    assert history.take_expired_blobs() == [blob]
    assert history.take_expired_blobs() == []
    found = history.get([record(n).id for n in (0, 1, 2, 10 * DAY_S)])
    assert [(found[record(n).id].result, found[record(n).id].blob) for n in (0, 1, 2)] == [(None, None)] * 3
    assert [found[record(n).id].result_expired for n in (0, 1, 2)] == [True, True, False]
    assert found[record(10 * DAY_S).id].result == b"x"
    assert not any(history.has_expired(record(n).id) for n in (0, 1, 2, 3))


def test_expired_ids_are_told_from_unknown_ones(history: History, file: Path) -> None:
    history.apply(1, stored([record(5), record(7), record(9 * DAY_S), record(6, id=3 << 32 | 1)]))
    assert history.expire(START_NS + 9 * DAY_S * NS_PER_S, 60, DAY_S, 100) > 0
    history.close()
    again = History.open(file)
    assert again.stats()["rows"] == 2  # the row behind the young one waits for it
    assert again.get([record(5).id, record(7).id]) == {}
    assert [again.has_expired(1 << 32 | number) for number in (1, 5, 7, 8)] == [True, True, True, False]
    assert not again.has_expired(2 << 32 | 1)
    assert not again.has_expired(record(9 * DAY_S).id)
    again.apply(2, stored([record(50)]))  # positions are not used again
    assert again.get([record(50).id])[record(50).id].result_expired is False
    again.close()


def test_positions_are_not_used_again_when_all_has_expired(history: History, file: Path) -> None:
    history.apply(1, stored([record(1, result=b"old")]))
    assert history.expire(START_NS + DAY_S * NS_PER_S, 1, 1, 10) > 0
    history.close()
    again = History.open(file)
    again.apply(2, stored([record(2, result=b"young")]))
    assert again.get([record(2).id])[record(2).id].result == b"young"
    again.close()


def test_horizons_are_bounded(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "SESSIONS_MAX", 3)
    history.apply(1, stored([record(1, id=session << 32 | 9) for session in range(1, 9)]))
    assert history.expire(START_NS + DAY_S * NS_PER_S, 1, 1, 100) > 0
    assert history.stats()["expired_sessions"] == 3
    assert all(history.has_expired(session << 32 | 9) for session in range(1, 9))
    assert not history.has_expired(9 << 32 | 1)
    assert not history.has_expired(8 << 32 | 10)


def test_a_date_from_a_wrong_clock_does_not_stop_retention(history: History) -> None:
    history.apply(1, stored([record(1, finished_ns=START_NS + 1000 * DAY_S * NS_PER_S), record(2)]))
    assert history.expire(START_NS + 5 * DAY_S * NS_PER_S, DAY_S, DAY_S, 100) > 0
    assert history.stats()["rows"] == 0


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda file: file.write_bytes(b"no database at all " * 500), "damaged"),
        (lambda file: run_sql(file, "PRAGMA user_version = 2"), "newer"),
        (lambda file: run_sql(file, "PRAGMA application_id = 1"), "damaged"),
        (lambda file: run_sql(file, "DROP TABLE meta"), "damaged"),
        (lambda file: run_sql(file, "DELETE FROM meta"), "damaged"),
    ],
)
def test_a_file_that_cannot_be_used_is_moved_aside(file: Path, spoil: object, kind: str) -> None:
    for _ in range(2):  # the second time over what the first has left
        first = History.open(file)
        first.apply(3, stored([record(1)]))
        first.close()
        spoil(file)  # type: ignore[operator]
        spoilt = file.read_bytes()
        again = History.open(file)
        aside = file.with_name(f"history.db.{kind}")
        assert str(aside) in again.moved_aside
        assert aside.read_bytes() == spoilt
        assert (again.cursor, again.stats()["rows"]) == (0, 0)
        again.close()


def run_sql(file: Path, statement: str) -> None:
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute(statement)
    connection.close()


def test_damage_met_in_use_says_so_and_can_be_rebuilt(history: History, file: Path) -> None:
    history.apply(1, stored([record(n, result=b"r" * 3000) for n in range(500)]))
    history.close()
    content = bytearray(file.read_bytes())
    half = len(content) // 2
    content[half : half + 200_000] = b"\x5a" * 200_000
    file.write_bytes(content)
    damaged = History.open(file)
    try:
        with pytest.raises(HistoryError) as caught:
            damaged.search(Filter(), None, 1000)
        assert caught.value.damaged
    finally:
        damaged.close()
    rebuilt = History.open(file, rebuild=True)
    assert ".damaged" in rebuilt.moved_aside
    assert rebuilt.cursor == 0
    rebuilt.close()


def test_threads_may_share_it(history: History) -> None:
    done = threading.Event()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                history.search(Filter(service="s"), None, 10)
                history.stats()
        except HistoryError as error:
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for batch in range(50):
        history.apply(batch + 1, stored([record(batch * 20 + n) for n in range(20)]))
    done.set()
    for reader in readers:
        reader.join()
    assert errors == []
    assert history.stats()["rows"] == 1000


def test_an_unreachable_place_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    with pytest.raises(HistoryError, match="cannot be opened"):
        History.open(folder / "history.db")
    shutil.rmtree(folder, ignore_errors=True)
