"""What an adversary, a large batch or bad luck may bring to the broker; each of these once went wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from box import wait_until
from broker_process import RawBroker, RawWorker, group

from empd.broker import clients
from empd.broker.clients import ClientDesk, Host, Means
from empd.broker.questions import WATCHERS_MAX
from empd.client.bulk import Bulk
from empd.clock import NS_PER_S, Instant
from empd.errors import FailureClass
from empd.job import RENEWABLE_FROM, JobFilter, format_id
from empd.lifecycle import Exit
from empd.payload import FRAME_BYTES_MAX
from empd.queue.machine import Queue
from empd.queue.policy import Policy, ServicePolicy, WorkerClass
from empd.queue.state import Offer
from empd.result import Results
from empd.wire import frames
from empd.wire.codec import decode_for_client, encode


def test_a_bulk_cancel_of_very_many_jobs_is_answered_in_frames_that_fit(broker: RawBroker) -> None:
    client = broker.client()
    total = 0
    for _ in range(15):
        total += len(client.accepted(group(*[b"\xc0"] * 4096)))
    would = client.ask(frames.Cancel, [], JobFilter(service="echo"), True)["would_cancel"]
    assert 0 < len(would) < total
    cancelled: set[int] = set()
    wanted = JobFilter(service="echo")
    while len(cancelled) < total:
        reply = client.ask(frames.Cancel, [], wanted)
        assert reply["cancelled"]
        cancelled.update(reply["cancelled"])
        assert bool(reply.get("more")) == (len(cancelled) < total)
        wanted.cursor, wanted.after = reply.get("cursor", 0), reply.get("after", 0)
    while len(client.told()) + len(cancelled) < total:
        pass
    assert client.ask(frames.Status)["jobs"]["unfinished"] == 0


def test_states_of_many_jobs_with_long_words_fit_into_a_frame(broker: RawBroker) -> None:
    client = broker.client()
    ids: list[int] = []
    for _ in range(2):
        ids += client.accepted(group(*[b"\xc0"] * 2500, labels={"text": "x" * 400}))
    states: frames.States = client.ask(frames.Ask, ids, answer=frames.States)
    assert {job.id for job in states.jobs} == set(ids)
    assert {job.state for job in states.jobs} == {"waiting"}
    few: frames.States = client.ask(frames.Ask, ids[:10], answer=frames.States)
    assert all(job.labels for job in few.jobs)


def test_states_of_as_many_jobs_as_may_be_asked_for_fit_into_a_frame(broker: RawBroker) -> None:
    client = broker.client()
    ids: list[int] = []
    for _ in range(5):
        ids += client.accepted(group(*[b"\xc0"] * 4000, customer_id="somebody with a long name" * 8))
    states: frames.States = client.ask(frames.Ask, ids, answer=frames.States)
    assert [job.id for job in states.jobs] == ids


def test_a_dead_worker_that_says_hello_late_gets_nothing(broker: RawBroker) -> None:
    client, dead = broker.client(), broker.worker("w-0")
    broker.gone(dead)
    client.ask(frames.Status)
    late = RawWorker(broker.context, broker.workers_endpoint, dead.name, dead.generation)
    offers = [frames.ServiceOffer("echo", 1)]
    late.say(frames.WorkerHello(1, dead.name, dead.generation, "w", 1, offers, [], {}))
    assert late.hear(frames.Error).failure == FailureClass.REFUSED
    [job_id] = client.accepted(group(b"\xc0"))
    assert client.state_of(job_id) == "waiting"
    living = broker.worker("w-0")
    living.complete(living.claim())
    assert client.result(job_id).outcome == 0
    late.close()


def test_a_cursor_beyond_the_journal_is_not_believed(broker: RawBroker) -> None:
    client = broker.client()
    client.say(frames.Subscribe("history", 1_000_000))
    wait_until(lambda: "history" in client.ask(frames.Status)["consumers"], "the consumer to be known")
    status = client.ask(frames.Status)
    assert status["consumers"]["history"] <= status["journal"]["last_seq"]


def test_a_client_that_says_good_bye_leaves_no_subscription(broker: RawBroker) -> None:
    client, other = broker.client(), broker.client()
    client.say(frames.Subscribe("", 1, 1))
    client.hear(frames.Rows)
    client.say(frames.Bye(True), frames.ClientHello(1))  # the connection itself stays
    client.hear(frames.Welcome)
    other.accepted(group(b"\xc0"))
    other.ask(frames.Status)
    client.say(frames.Status(9))
    client.hear(frames.Reply, request=9)
    assert not [frame for frame in client.take() if type(frame) is frames.Rows]


# --- the clients' desk by itself -------------------------------------------------------------------------------------


class Desk:
    """A desk whose outbox keeps what it is given."""

    def __init__(self, **limits: Any) -> None:
        policy = Policy(services={"echo": ServicePolicy()}, classes=(WorkerClass(("echo",), {}),), **limits)
        self.queue = Queue(policy)
        self.now = Instant(1_000 * NS_PER_S, 1_700_000_000 * NS_PER_S)
        self.queue.start("boot", "test", self.now)
        self.sent: list[tuple[bytes, Any]] = []
        outbox: Any = SimpleNamespace(put=self._put, has_room=lambda identity: True)
        ledger: Any = SimpleNamespace(closed="", journal=SimpleNamespace(instance="i" * 32, last_seq=0))
        nothing: Any = SimpleNamespace(forget=lambda identity: None)
        self.desk = ClientDesk(Means(self.queue, ledger, outbox, nothing, nothing), Host("h", "s", "v", True))

    def _put(self, identity: bytes, frame: Any) -> None:
        self.sent.append((identity, decode_for_client(frame if isinstance(frame, bytes) else encode(frame))))

    def say(self, identity: bytes, frame: Any) -> Any:
        """The last frame that answers."""
        self.sent.clear()
        self.desk.handle(identity, encode(frame), self.now)
        while self.desk.answer(0) is not None:
            pass
        return self.sent[-1][1] if self.sent else None

    def later(self, seconds: int) -> None:
        self.now = Instant(self.now.mono_ns + seconds * NS_PER_S, self.now.wall_ns + seconds * NS_PER_S)


def test_a_session_is_not_forgotten_while_its_client_is_there() -> None:
    desk = Desk()
    welcome = desk.say(b"c", frames.ClientHello(1))
    for _ in range(30):
        desk.later(3600)
        desk.sent.clear()
        desk.desk.keep_sessions(desk.now)
        desk.queue.forget(desk.now)
    assert welcome.session in desk.queue.state.sessions
    assert type(desk.say(b"c", frames.Submit(1, 1, [group(b"\xc0")]))) is frames.Accepted


def test_a_session_whose_client_went_without_a_word_is_forgotten() -> None:
    desk = Desk()
    welcome = desk.say(b"c", frames.ClientHello(1))
    for _ in range(60):
        desk.later(3600)
        desk.sent.clear()
        desk.desk.keep_sessions(desk.now)
        desk.desk.lost({identity for identity, _ in desk.sent})  # nobody is there
        desk.queue.forget(desk.now)
    assert welcome.session not in desk.queue.state.sessions
    assert desk.desk.connected == 0


def test_a_forgotten_session_takes_no_jobs() -> None:
    desk = Desk()
    desk.say(b"c", frames.ClientHello(1))
    desk.later(2 * 86_400)
    desk.queue.forget(desk.now)
    answer = desk.say(b"c", frames.Submit(1, 1, [group(b"\xc0")]))
    assert type(answer) is frames.Error
    assert "Hello" in answer.message
    assert not desk.queue.state.jobs


def test_a_used_up_session_is_renewed_once_and_its_jobs_go_on() -> None:
    desk = Desk()
    old = desk.say(b"c", frames.ClientHello(1))
    session = desk.queue.state.sessions[old.session]
    session.next_job = RENEWABLE_FROM - 1
    desk.say(b"c", frames.Submit(1, RENEWABLE_FROM - 1, [group(b"\xc0")]))
    new = desk.say(b"c", frames.ClientHello(1, old.session, old.token, renew=True))
    assert (new.session, new.next_job, new.frame_number) == (old.session + 1, 1, 0)
    for renew in (True, False):  # said before its answer came
        assert desk.say(b"c", frames.ClientHello(1, old.session, old.token, renew=renew)).session == new.session
    assert desk.say(b"d", frames.ClientHello(1, old.session, b"not its token", renew=True)).session > new.session
    assert type(desk.say(b"c", frames.Submit(1, 1, [group(b"\xc0")]))) is frames.Accepted
    ended = Results(old.session, "", 0, [])
    desk.sent.clear()
    desk.desk.results(ended, encode(ended))
    assert [identity for identity, _ in desk.sent] == [b"c"]


def test_a_session_with_numbers_left_is_not_renewed() -> None:
    desk = Desk()
    old = desk.say(b"c", frames.ClientHello(1))
    assert desk.say(b"c", frames.ClientHello(1, old.session, old.token, renew=True)).session == old.session


def test_watchers_of_a_job_are_bounded() -> None:
    desk = Desk()
    owner = desk.say(b"c", frames.ClientHello(1))
    desk.say(b"c", frames.Submit(1, 1, [group(b"\xc0")]))
    for number in range(WATCHERS_MAX + 50):
        identity = b"w%d" % number
        desk.say(identity, frames.ClientHello(1))
        desk.say(identity, frames.Ask(1, [owner.session << 32 | 1]))
    [watching] = desk.desk._questions._watchers.values()
    assert len(watching) == WATCHERS_MAX


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_bulk_cancel_goes_on_behind_what_it_has_named(monkeypatch: pytest.MonkeyPatch, dry_run: bool) -> None:
    """Jobs that are only being stopped, or named by a dry run, stay where they are."""
    monkeypatch.setattr(clients, "BULK_MAX", 4)
    desk = Desk()
    welcome = desk.say(b"c", frames.ClientHello(1))
    desk.say(b"c", frames.Submit(1, 1, [group(*[b"\xc0"] * 10)]))
    worker, _ = desk.queue.hello("w-0", 1, [], desk.now)
    desk.queue.offer(worker, 6, {"echo": Offer(6)}, "")
    assert desk.queue.claim(worker, desk.now) is not None
    bulk = Bulk(frames.Cancel, [], dry_run, {"service": "echo"})
    requests = 0
    while (make := bulk.following()) is not None:
        requests += 1
        assert requests <= 3
        bulk.answered(desk.say(b"c", make(requests)).body)
    ids = [format_id(welcome.session << 32 | number) for number in range(1, 11)]
    if dry_run:
        assert bulk.found == {"would_cancel": ids}
    else:
        assert bulk.found == {"cancelling": ids[:6], "cancelled": ids[6:], "unknown": []}


def test_a_bulk_retry_goes_on_until_every_dead_letter_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "BULK_MAX", 4)
    desk = Desk(max_crashes=1)
    desk.say(b"c", frames.ClientHello(1))
    desk.say(b"c", frames.Submit(1, 1, [group(*[b"\xc0"] * 10)]))
    worker, _ = desk.queue.hello("w-0", 1, [], desk.now)
    desk.queue.offer(worker, 10, {"echo": Offer(10)}, "")
    assert desk.queue.claim(worker, desk.now) is not None
    desk.queue.gone(worker.key, Exit.CRASHED, "", desk.now)
    assert desk.queue.state.dead == 10
    bulk = Bulk(frames.Retry, [], False, {"service": "echo"})
    while (make := bulk.following()) is not None:
        bulk.answered(desk.say(b"c", make(1)).body)
    assert len(bulk.found["retried"]) == 10
    assert desk.queue.state.dead == 0


def test_very_many_ids_go_in_several_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("empd.client.bulk.IDS_PER_REQUEST", 4)
    desk = Desk()
    welcome = desk.say(b"c", frames.ClientHello(1))
    desk.say(b"c", frames.Submit(1, 1, [group(*[b"\xc0"] * 10)]))
    ids = [welcome.session << 32 | number for number in range(1, 13)]
    bulk = Bulk(frames.Cancel, ids, False, {})
    requests = 0
    while (make := bulk.following()) is not None:
        requests += 1
        bulk.answered(desk.say(b"c", make(requests)).body)
    assert requests == 3
    assert (len(bulk.found["cancelled"]), len(bulk.found["unknown"])) == (10, 2)


def test_the_largest_answers_are_frames() -> None:
    desk = Desk()
    welcome = desk.say(b"c", frames.ClientHello(1))
    ids = []
    for number in range(1, 6):
        desk.say(b"c", frames.Submit(number, 1 + 4000 * (number - 1), [group(*[b""] * 4000, labels={"a": "b" * 90})]))
        ids += [welcome.session << 32 | 1 + 4000 * (number - 1) + i for i in range(4000)]
    answer = desk.say(b"c", frames.Ask(1, ids))
    assert len(answer.jobs) == 20_000
    assert len(encode(answer)) < FRAME_BYTES_MAX
