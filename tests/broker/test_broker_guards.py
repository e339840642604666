"""Guards of the broker that a full disk, a failed commit or a fault in the middle of a pass bring into play: each by
itself, so that taking it out shows."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from broker_process import WAIT_S, RawBroker, group

from empd import clock
from empd.broker.ledger import Ledger
from empd.broker.process import EXIT_JOURNAL, Broker
from empd.clock import NS_PER_S, Instant
from empd.errors import FailureClass
from empd.queue.machine import Queue
from empd.queue.policy import Policy
from empd.store.journal import SqliteJournal
from empd.wire import frames

RESERVE_BYTES = 4096


def test_a_failed_commit_sends_nothing_and_ends_the_broker(broker: RawBroker) -> None:
    worker = broker.worker()
    client = broker.client()
    [job] = client.accepted(group(b"1"))
    claim = worker.claim()
    assert broker.process is not None
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No byte of any file can be written from now on, also after the reserve was given up.
    resource.prlimit(broker.process.pid, resource.RLIMIT_FSIZE, (0, hard))
    client.submit(group(b"2"))
    worker.complete(claim, settle=False)
    assert broker.process.wait(WAIT_S) == EXIT_JOURNAL
    assert client.take() == []
    assert worker.take() == []
    broker.start()
    assert client.welcome is not None
    resumed = broker.client(hello=False).hello(client.welcome.session, client.welcome.token)
    assert resumed.frame_number == 1
    assert worker.hello(held=[(claim.id, claim.epoch)]).abandon == []
    assert claim.id == job


def test_below_disk_free_min_bytes_new_jobs_are_refused_and_accepted_ones_go_on(broker: RawBroker) -> None:
    client = broker.client()
    [accepted] = client.accepted(group(b"1"))
    broker.settings["disk_free_min_bytes"] = 1 << 60
    broker.restart()
    assert client.welcome is not None
    client.hello(client.welcome.session, client.welcome.token)
    client.submit(group(b"2", b"3"))
    refused = client.hear(frames.Accepted, number=client.number).refused
    assert [refusal.failure for refusal in refused] == [FailureClass.UNAVAILABLE] * 2
    assert all("disk_free_min_bytes" in refusal.reason and refusal.retry_after_s for refusal in refused)
    worker = broker.worker()
    assert "disk_free_min_bytes" in client.ask(frames.Status)["problems"][0]
    worker.complete(worker.claim())
    client.result(accepted)


def test_nothing_is_claimed_before_it_is_known_who_lives(broker: RawBroker) -> None:
    client = broker.client()
    client.accepted(group(b"1"))
    broker.kill()
    broker.start(settle=False)
    worker = broker.worker()
    worker.say(frames.StateGet(1, "any"))
    worker.hear(frames.StateValue, request=1)
    assert worker.take() == []
    broker.settle()
    worker.claim()


class Desk:
    """Handles a frame with a fault, after so many decisions."""

    def __init__(self, decisions: int) -> None:
        self.queue = SimpleNamespace(state=SimpleNamespace(seq=5))
        self.decisions = decisions
        self.told: list[str] = []

    def handle(self, identity: bytes, data: bytes, now: Instant) -> None:
        self.queue.state.seq += self.decisions
        raise ZeroDivisionError("a fault")

    def failed(self, identity: bytes, message: str) -> None:
        self.told.append(message)


def test_a_fault_is_answered_where_nothing_was_decided_and_else_left_to_a_replay() -> None:
    desk: Any = Desk(0)
    Broker._handle(desk, desk, b"peer", b"frame", clock.now())
    assert desk.told == ["ZeroDivisionError: a fault"]
    desk = Desk(1)
    with pytest.raises(ZeroDivisionError):
        Broker._handle(desk, desk, b"peer", b"frame", clock.now())
    assert desk.told == []


def test_status_says_what_a_job_would_meet(make_broker: Callable[..., RawBroker]) -> None:
    broker = make_broker(queue_jobs_max=3, queue_bytes_max=100)
    client = broker.client()

    def problems() -> str:
        return "; ".join(client.ask(frames.Status)["problems"])

    def refusals(*payloads: bytes) -> int:
        client.submit(group(*payloads))
        return len(client.hear(frames.Accepted, number=client.number).refused)

    assert "no worker" in problems()
    broker.worker(services=("other",))
    assert problems() == ""
    client.ask(frames.Operate, "drain")
    assert "resume" in problems()
    client.ask(frames.Operate, "resume")
    assert refusals(bytes(100)) == 0
    assert "queue_bytes_max" in problems()
    assert refusals(b"1") == 1
    client.ask(frames.Cancel, [client.welcome.session << 32 | 1])  # type: ignore[union-attr]
    assert problems() == ""
    assert refusals(b"1", b"2", b"3") == 0
    assert "queue_jobs_max" in problems()
    assert refusals(b"4") == 1


@pytest.fixture
def journal(tmp_path: Path) -> SqliteJournal:
    return SqliteJournal.open(tmp_path / "journal.db", durability="os", reserve_bytes=RESERVE_BYTES)


def ledger_of(journal: SqliteJournal, journal_bytes_max: int = 1 << 40) -> Ledger:
    return Ledger(journal, Queue(Policy(services={}, classes=())), 0, journal_bytes_max)


def closed_after_a_look(ledger: Ledger, look: int) -> str:
    now = clock.now()
    ledger.check_disk(now._replace(mono_ns=now.mono_ns + look * NS_PER_S))
    return ledger.closed


def test_while_the_reserve_is_in_use_nothing_new_is_taken(journal: SqliteJournal, monkeypatch) -> None:
    ledger = ledger_of(journal)
    assert closed_after_a_look(ledger, 1) == ""
    assert journal.release_reserve()
    with monkeypatch.context() as full:
        full.setattr(journal, "restore_reserve", lambda: False)
        assert "reserve" in closed_after_a_look(ledger, 2)
    assert closed_after_a_look(ledger, 3) == ""
    assert journal.reserve_held
    journal.close()


def test_a_journal_that_cannot_be_trimmed_takes_nothing_new(journal: SqliteJournal) -> None:
    assert "journal_bytes_max" in closed_after_a_look(ledger_of(journal, journal_bytes_max=1), 1)
    journal.close()
