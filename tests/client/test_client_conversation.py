"""The conversation against a model broker over a link that loses, repeats and cuts: no I/O, no clock."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import msgspec
import pytest
from client_model import ModelBroker, failing
from hypothesis import given, settings
from hypothesis import strategies as st

from empd.client.conversation import ASK_AGAIN_NS, GREETING_RETRY_NS, SILENCE_NS, Conversation
from empd.client.handle import Handle
from empd.client.options import OptionsEncoder
from empd.client.roll_call import ASK_IDS_MAX
from empd.client.submissions import Submissions
from empd.errors import FailureClass, JobFailed, ProtocolError, Refused
from empd.job import SESSION_JOBS_MAX
from empd.payload import FRAME_BYTES_MAX, BlobRef, Carried
from empd.result import FinishedGroup, FinishedJob, JobStatus, Refusal
from empd.wire import codec, frames

OPTIONS = OptionsEncoder().encode("square", "bytes", {})


class Link:
    """A conversation and a model broker with the two directions between them in sight."""

    def __init__(self, broker: ModelBroker) -> None:
        self.broker = broker
        self.conversation = Conversation("test")
        self.now_ns = 0
        self.lives = 0
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.ends: Counter[bytes] = Counter()
        self.handles: list[Handle] = []
        self.connect()

    @property
    def peer(self) -> bytes:
        return b"peer%d" % self.lives

    def connect(self) -> None:
        self.lives += 1
        self.conversation.connected(self.now_ns)
        self.pull()

    def pull(self) -> None:
        self.up.extend(self.conversation.outgoing(self.now_ns))

    def submit(self, payload: bytes, key: str = "") -> Handle:
        handle = Handle(0)
        handle.watch(lambda _: self.ends.update([payload]))
        self.handles.append(handle)
        self.conversation.submit(handle, OPTIONS, payload, key)
        self.pull()
        return handle

    def step_up(self) -> None:
        if self.up:
            self.down.extend(self.broker.receive(self.peer, self.up.popleft()))

    def step_down(self, twice: bool = False) -> None:
        if self.down:
            data = self.down.popleft()
            for _ in range(2 if twice else 1):
                self.conversation.receive(data, self.now_ns)
            self.pull()

    def cut(self, lost_up: int, kept_down: int, unseen: int) -> None:
        """The connection breaks: what was on its way is lost. ZeroMQ sends what it had not sent yet on the next
        connection, `unseen` frames of it before the client has greeted."""
        del self.broker.connections[self.peer]
        for _ in range(min(lost_up, len(self.up))):
            self.up.popleft()
        self.down = deque(list(self.down)[:kept_down])
        self.lives += 1
        for _ in range(unseen):
            self.step_up()
        self.conversation.disconnected()
        self.conversation.connected(self.now_ns)
        self.pull()

    def finish(self, count: int) -> None:
        for session, data in self.broker.finish(count):
            if self.broker.connections.get(self.peer) == session:
                self.down.append(data)

    def settle(self) -> None:
        """Lets everything arrive."""
        for _ in range(10_000):
            if not (self.up or self.down):
                break
            self.step_up()
            self.step_down()
        else:
            raise AssertionError("the two never stop talking")


OPERATIONS = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 5)),
    st.tuples(st.just("up"), st.integers(1, 6)),
    st.tuples(st.just("down"), st.integers(1, 6)),
    st.tuples(st.just("twice"), st.integers(1, 3)),
    st.tuples(st.just("finish"), st.integers(1, 8)),
    st.tuples(st.just("seal"), st.just(1)),
    st.tuples(st.just("resync"), st.just(1)),
    st.tuples(st.just("cut"), st.integers(0, 63)),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(OPERATIONS, max_size=60))
def test_every_job_is_taken_once_and_every_handle_ends_once(operations: list[tuple[str, int]]) -> None:
    link = Link(ModelBroker(work=lambda number, payload: None))
    names = iter(range(10_000))

    def submit() -> None:
        link.submit(b"job%d" % next(names))

    actions: dict[str, Any] = {
        "submit": submit,
        "up": link.step_up,
        "down": link.step_down,
        "twice": lambda: link.step_down(twice=True),
        "finish": lambda: link.finish(1),
        "seal": link.conversation.seal,
        "resync": lambda: link.down.append(codec.encode(frames.Resync())),
    }
    link.settle()
    for name, count in operations:
        if name == "cut":
            if link.peer in link.broker.connections:
                link.cut(count & 3, count >> 2 & 3, count >> 4 & 3)
            continue
        for _ in range(count):
            actions[name]()
    link.settle()
    link.finish(1 << 30)
    link.settle()
    assert all(handle.ended for handle in link.handles)
    assert link.ends == Counter(b"job%d" % index for index in range(len(link.handles)))
    assert len(link.broker.taken) == len(link.handles)
    assert set(link.broker.taken.values()) <= {1}
    assert not link.conversation.busy
    for index, handle in enumerate(link.handles):
        assert handle.finished is not None
        assert handle.finished.result == b"job%d" % index


@settings(max_examples=200, deadline=None)
@given(st.lists(OPERATIONS, max_size=40), st.lists(OPERATIONS, max_size=20))
def test_a_wiped_daemon_ends_accepted_jobs_and_gets_the_others_again(
    before: list[tuple[str, int]], after: list[tuple[str, int]]
) -> None:
    link = Link(ModelBroker(work=lambda number, payload: None))
    link.settle()
    for index, (name, _) in enumerate(before):
        if name == "submit":
            link.submit(b"before%d" % index)
        elif name == "up":
            link.step_up()
        elif name == "down":
            link.step_down()
    acknowledged = [handle for handle in link.handles if handle.batch is None]
    link.conversation.disconnected()
    link.broker.restart(wipe=True)
    link.up.clear()
    link.down.clear()
    link.connect()
    for index, (name, _) in enumerate(after):
        if name == "submit":
            link.submit(b"after%d" % index)
        elif name == "down":
            link.step_down()
        else:
            link.step_up()
    link.settle()
    link.finish(1 << 30)
    link.settle()
    for handle in link.handles:
        if handle in acknowledged:
            error = handle.failure()
            assert isinstance(error, JobFailed)
            assert error.failure is FailureClass.HOST_LOST
        else:
            assert handle.finished is not None
            assert handle.number >> 32 == 2
    assert not link.conversation.busy
    assert link.conversation.flushed


def test_a_daemon_that_lost_acknowledged_frames_gets_the_next_ones_without_a_gap() -> None:
    link = Link(ModelBroker(work=lambda number, payload: None))
    link.settle()
    link.submit(b"kept")
    link.settle()
    kept = dict(link.broker.sessions[1])
    lost = link.submit(b"lost")
    link.settle()
    assert lost.batch is None
    # Power failed: the journal's tail, and all that was made of it, is gone.
    link.broker.sessions[1] = kept
    del link.broker.answers[1, 2], link.broker.waiting[lost.number]
    late = link.submit(b"late")
    link.cut(lost_up=9, kept_down=0, unseen=0)
    link.settle()
    link.finish(9)
    link.settle()
    assert late.finished is not None
    assert link.conversation.take_unknown() == [lost.number]


def near_the_end(link: Link, left: int) -> None:
    """The session has so many numbers left."""
    next_job = SESSION_JOBS_MAX - left
    link.broker.sessions[1]["job"] = link.conversation.submissions.next_job = next_job


def test_a_session_whose_numbers_come_to_an_end_is_renewed_when_nothing_waits_for_an_answer() -> None:
    link = Link(ModelBroker(work=lambda number, payload: None))
    link.settle()
    near_the_end(link, 1 << 23)
    old = [link.submit(b"old%d" % number) for number in range(3)]
    assert link.conversation.submissions.session == 1, "its jobs wait for their acknowledgement"
    link.settle()
    assert link.conversation.submissions.session == 2
    new = link.submit(b"new")
    link.settle()
    assert [handle.number >> 32 for handle in (*old, new)] == [1, 1, 1, 2]
    link.broker.finish()
    link.now_ns += ASK_AGAIN_NS
    link.pull()
    link.settle()
    assert all(handle.ended for handle in old), "jobs of the old session are asked for"
    link.cut(0, 0, 0)
    link.settle()
    assert new.ended
    assert all(count == 1 for count in link.ends.values())
    assert not link.conversation.unknown


@pytest.mark.parametrize("lost", range(4))
@pytest.mark.parametrize("unseen", range(3))
def test_a_busy_session_holds_its_frames_back_to_be_renewed(lost: int, unseen: int) -> None:
    """Whatever is lost with a connection in the middle of it, every job is taken once."""
    link = Link(ModelBroker())
    link.settle()
    near_the_end(link, (1 << 22) + 5)
    handles = []
    for number in range(20):
        handles.append(link.submit(b"%d" % number))
        link.conversation.seal()
        link.pull()
        if number % 4 == lost:
            link.step_up()
    link.cut(lost, lost, unseen)
    handles += [link.submit(b"after%d" % number) for number in range(5)]
    link.settle()
    link.now_ns += ASK_AGAIN_NS
    link.pull()
    link.settle()
    assert link.conversation.submissions.session > 1
    assert all(handle.ended and handle.error is None for handle in handles)
    assert set(link.broker.taken.values()) == {1}
    assert len(link.broker.taken) == 25
    assert set(link.ends.values()) == {1}


def test_single_submits_gather_while_one_frame_is_on_its_way() -> None:
    link = Link(ModelBroker())
    link.settle()
    for index in range(600):
        link.submit(b"%d" % index)
    assert [len(frame.groups[0].payloads) for frame in _sent(link)] == [1, 256, 256]
    link.settle()
    assert all(handle.ended for handle in link.handles)
    assert link.conversation.submissions.next_frame == 5


def _sent(link: Link) -> list[frames.Submit]:
    decoded = [codec.decode_client_frame(data) for data in link.up]
    return [frame for frame in decoded if isinstance(frame, frames.Submit)]


def test_no_frame_is_over_the_limit() -> None:
    link = Link(ModelBroker())
    link.settle()
    for _ in range(100):
        link.submit(b"x" * 60_000)
    link.conversation.seal()
    link.pull()
    assert sum(len(frame.groups[0].payloads) for frame in _sent(link)) == 100
    assert max(len(data) for data in link.up) <= FRAME_BYTES_MAX


@pytest.mark.parametrize(
    ("payloads", "keys"),
    [
        ([("bytes", b"%d" % n) for n in range(256)], None),
        ([("bytes", b"a"), ("msgpack", b"\x01"), ("bytes", b"b")], None),
        ([("bytes", BlobRef("ab" * 16, 5, 7)), ("bytes", b"a")], None),
        ([("bytes", b"x" * 300_000)] * 4, None),
        ([("bytes", b"a"), ("bytes", b"a"), ("bytes", b"b"), ("bytes", b"c")], ["k", "k", ""]),
        ([("bytes", b"a")], []),
    ],
)
def test_jobs_taken_together_make_the_frames_of_jobs_taken_singly(
    payloads: list[tuple[str, Carried]], keys: list[str] | None
) -> None:
    options = {encoding: OptionsEncoder().encode("square", encoding, {}) for encoding, _ in payloads}
    sent = []
    for together in (False, True):
        submissions = Submissions()
        submissions.session, submissions.next_job = 3, 7
        earlier, handles = Handle(0), [Handle(0) for _ in payloads]
        submissions.submit(earlier, OPTIONS, b"before")
        named = iter(keys or ())
        if together:
            submissions.submit_many(handles, payloads, options, None if keys is None else named)
        else:
            submissions.seal()
            for handle, (encoding, payload) in zip(handles, payloads, strict=True):
                submissions.submit(handle, options[encoding], payload, next(named, ""))
            submissions.seal()
        assert submissions.gathering is None
        batches = [handle.batch.number if handle.batch else 0 for handle in handles]
        assert list(submissions.open.items()) == [(each.number, each) for each in (earlier, *handles)]
        sizes = [batch.size_bytes for batch in submissions.unacknowledged.values()]
        frames_out = [codec.encode(frame) for frame in submissions.take_unsent()]
        sent.append((frames_out, [handle.number for handle in handles], batches, sizes, submissions.next_job))
    assert sent[0] == sent[1]


def test_jobs_of_different_options_share_a_frame_in_their_order() -> None:
    link = Link(ModelBroker())
    link.settle()
    link.submit(b"first")
    other = OptionsEncoder().encode("other", "bytes", {"priority": 90})
    for options in (OPTIONS, OPTIONS, other, OPTIONS):
        handle = Handle(0)
        link.handles.append(handle)
        link.conversation.submit(handle, options, b"p", "")
    link.settle()
    submit = [frame for frame in link.broker.seen if isinstance(frame, frames.Submit)][-1]
    assert [len(group.payloads) for group in submit.groups] == [2, 1, 1]
    ended = [codec.decode_options(handle.ending.options).service for handle in link.handles if handle.ending]
    assert ended == ["square", "square", "square", "other", "square"]


def test_a_refused_job_ends_with_the_reason() -> None:
    broker = ModelBroker()
    broker.refuse[b"bad"] = Refusal(0, "unmatchable", "nobody offers it", 2.5)
    link = Link(broker)
    link.settle()
    link.submit(b"hold")
    good, bad = link.submit(b"good"), link.submit(b"bad")
    link.settle()
    error = bad.failure()
    assert isinstance(error, Refused)
    assert (error.failure, error.retry_after_s) == (FailureClass.UNMATCHABLE, 2.5)
    assert good.finished is not None
    assert bad.state == "refused"


def test_a_key_that_names_a_job_makes_both_handles_follow_it() -> None:
    link = Link(ModelBroker(work=lambda number, payload: None))
    link.settle()
    first, second = link.submit(b"a", key="k"), link.submit(b"b", key="k")
    link.settle()
    assert second.number == first.number
    assert len(link.broker.waiting) == 1
    link.finish(1)
    link.settle()
    assert first.finished is second.finished is not None
    assert not link.conversation.busy


def test_a_key_of_another_session_is_asked_for_until_it_ends() -> None:
    broker = ModelBroker(work=lambda number, payload: None)
    theirs = Link(broker)
    theirs.settle()
    owned = theirs.submit(b"a", key="k")
    theirs.settle()
    ours = Link(broker)
    ours.lives = 100
    ours.conversation.connected(0)
    ours.up.clear()
    ours.pull()
    ours.settle()
    handle = ours.submit(b"b", key="k")
    ours.settle()
    assert handle.number == owned.number
    assert handle.foreign
    assert not handle.ended
    broker.finish()
    ours.now_ns = ASK_AGAIN_NS * 2
    ours.pull()
    ours.settle()
    ours.now_ns *= 2
    ours.pull()
    assert handle.finished is not None
    assert ours.conversation.deadline_ns() is None


def roll_call_of(count: int) -> Link:
    """A link whose `count` jobs have ended while it was cut, and that is up again; nothing was received since."""
    link = Link(ModelBroker(work=lambda number, payload: None))
    link.settle()
    for index in range(count):
        link.submit(b"%d" % index)
        if index % 256 == 0:
            link.settle()
    link.settle()
    link.broker.finish()
    link.cut(0, 0, 0)
    link.broker.seen.clear()
    return link


def asked(link: Link) -> list[int]:
    return [len(frame.ids) for frame in link.broker.seen if isinstance(frame, frames.Ask)]


def test_open_handles_are_asked_for_in_parts_each_when_the_last_is_answered() -> None:
    link = roll_call_of(2 * ASK_IDS_MAX + 100)
    counts = []
    while link.conversation.busy:
        link.step_up()
        link.step_down()
        counts.append(len(link.conversation.requests.waiting))
        assert len(counts) < 100
    assert asked(link) == [ASK_IDS_MAX, ASK_IDS_MAX, 100]
    assert max(counts) == 1
    assert all(handle.finished for handle in link.handles)


def test_a_roll_call_that_is_cut_off_begins_anew_with_what_is_still_open() -> None:
    link = roll_call_of(2 * ASK_IDS_MAX)
    while not asked(link):
        link.step_up()
        link.step_down()
    link.settle()
    assert all(handle.finished for handle in link.handles)
    link = roll_call_of(2 * ASK_IDS_MAX)
    while len(link.conversation.open) > ASK_IDS_MAX:
        link.step_up()
        link.step_down()
    link.cut(0, 0, 0)
    link.broker.seen.clear()
    link.settle()
    assert asked(link) == [ASK_IDS_MAX], "neither the answered part nor the question of the last connection again"
    assert all(handle.finished for handle in link.handles)


def test_a_daemon_that_dropped_us_without_a_word_is_noticed() -> None:
    link = Link(ModelBroker(work=lambda number, payload: None))
    link.settle()
    handle = link.submit(b"a")
    link.settle()
    # It gave up on a slow connection: the session stays, nobody holds it, and the result went to nobody.
    link.broker.restart()
    link.broker.finish()
    link.pull()
    assert not link.up
    link.now_ns += SILENCE_NS
    link.pull()
    link.settle()
    assert handle.finished is not None
    assert not link.conversation.busy


def test_a_request_before_the_greeting_is_asked_again() -> None:
    link = Link(ModelBroker())
    link.settle()
    link.broker.restart()
    request = link.conversation.request(frames.Status)
    link.pull()
    link.settle()
    assert request.value() == {"waiting": 0}


def test_history_that_lags_behind_is_asked_again() -> None:
    link = Link(ModelBroker(work=lambda number, payload: None))
    link.settle()
    handle = link.submit(b"a")
    link.settle()
    link.conversation.receive(codec.encode(frames.States(0, [JobStatus(handle.number, "unknown", epoch=50)])), 0)
    for through_seq in (10, 49):
        assert link.conversation.take_unknown() == [handle.number]
        link.conversation.lookups.answered([handle.number], frames.HistoryAnswer(1, through_seq, []))
        assert not handle.ended
    assert link.conversation.take_unknown() == [handle.number]
    link.conversation.lookups.answered([handle.number], frames.HistoryAnswer(1, 50, []))
    assert isinstance(handle.failure(), Refused)


def test_a_key_given_twice_in_a_row_goes_in_two_frames() -> None:
    link = Link(ModelBroker(work=lambda number, payload: None))
    link.settle()
    link.submit(b"busy")
    handles = [link.submit(b"same", key="k") for _ in range(3)]
    link.settle()
    assert len({handle.number for handle in handles}) == 1
    assert not any(handle.ended for handle in handles)


def test_a_greeting_without_answer_is_repeated() -> None:
    conversation = Conversation()
    conversation.connected(1)
    [hello] = conversation.outgoing(1)
    assert conversation.outgoing(2) == []
    assert conversation.deadline_ns() == GREETING_RETRY_NS + 1
    assert conversation.outgoing(GREETING_RETRY_NS + 1) == [hello]


@given(st.binary(max_size=200))
def test_bytes_that_are_no_frame_end_the_conversation(data: bytes) -> None:
    link = Link(ModelBroker(work=lambda number, payload: None))
    link.settle()
    handle = link.submit(b"a")
    request = link.conversation.request(frames.Status)
    try:
        codec.decode_for_client(data)
    except ProtocolError:
        with pytest.raises(ProtocolError):
            link.conversation.receive(data, 0)
        assert isinstance(handle.failure(), ProtocolError)
        assert isinstance(request.error, ProtocolError)
        assert link.conversation.failed is handle.error


FRAMES_OUT_OF_TURN = [
    frames.Accepted(1, [Refusal(7, "refused", "no such index")]),
    frames.Welcome(99, 1, b"", "", 1, 0, 1, 1, 1, "", "", ""),
    frames.Error(0, "invalid_input", "gap in frame numbers"),
]


@pytest.mark.parametrize("frame", FRAMES_OUT_OF_TURN, ids=lambda frame: type(frame).__name__)
def test_a_frame_that_cannot_be_right_ends_the_conversation(frame: Any) -> None:
    link = Link(ModelBroker(work=lambda number, payload: None))
    link.settle()
    handle = link.submit(b"a")
    with pytest.raises(ProtocolError):
        link.conversation.receive(codec.encode(frame), 0)
    assert handle.ended


def test_history_answers_for_what_the_broker_forgot() -> None:
    link = Link(ModelBroker(work=lambda number, payload: None))
    link.settle()
    handles = [link.submit(b"%d" % index) for index in range(3)]
    link.settle()
    link.broker.waiting.clear()
    link.cut(0, 0, 0)
    link.settle()
    ids = link.conversation.take_unknown()
    assert sorted(ids) == sorted(handle.number for handle in handles)
    assert not link.conversation.take_unknown()
    job = FinishedJob(handles[0].number, 0, b"\x01", 1, 2, 1)
    answer = frames.HistoryAnswer(1, 9, [FinishedGroup(msgspec.Raw(bytes(OPTIONS)), [job])], [handles[1].number])
    link.conversation.lookups.answered(ids, answer)
    assert handles[0].finished == job
    assert "expired_from_history" in str(handles[1].failure())
    assert "history holds no record" in str(handles[2].error)


@pytest.mark.parametrize(
    ("outcome", "kind"), [(1, "JobFailed"), (2, "JobCancelled"), (3, "JobExpired"), (4, "JobDead")]
)
def test_outcomes_become_exceptions(outcome: int, kind: str) -> None:
    link = Link(ModelBroker(work=failing(outcome, "bad_response")))
    link.settle()
    handle = link.submit(b"a")
    link.settle()
    error = handle.failure()
    assert isinstance(error, JobFailed)
    assert type(error).__name__ == kind
    assert (error.failure, error.message, error.evidence) == (FailureClass.BAD_RESPONSE, "as told", "evidence")
    assert handle.final_status().service == "square"


def test_rows_that_come_again_after_a_reconnect_are_passed_over() -> None:
    link = Link(ModelBroker())
    link.settle()
    subscription = link.conversation.subscribe(frames.Subscribe("web", 5))
    link.pull()
    link.settle()
    link.conversation.receive(codec.encode(frames.Rows("web", [(5, 1, 1, 0, b""), (6, 1, 1, 0, b"")])), 0)
    link.conversation.receive(codec.encode(frames.Rows("web", [(6, 1, 1, 0, b""), (8, 1, 1, 0, b"")])), 0)
    link.conversation.receive(codec.encode(frames.Rows("other", [(9, 1, 1, 0, b"")])), 0)
    taken = [row[0] for frame in subscription.frames if isinstance(frame, frames.Rows) for row in frame.rows]
    assert taken == [5, 6, 8]
    link.cut(0, 0, 0)
    link.settle()
    again = [frame for frame in link.broker.seen if isinstance(frame, frames.Subscribe)]
    assert [frame.from_seq for frame in again] == [5, 9]
    link.conversation.receive(codec.encode(frames.Reset("web", 100)), 0)
    assert subscription.next_seq == 100
