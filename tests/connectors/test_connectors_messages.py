"""Correlation and the life of a connection: the pure parts, over whatever order things happen in."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from empd.connectors.failures import ServiceUnavailable
from empd.connectors.protocol.correlation import ENDS, Correlation, Delivery, Fate, Mailbox, MessageType
from empd.connectors.protocol.link import Link, LinkAction, LinkEvent, LinkState

KEYS = st.sampled_from([f"job-{n}" for n in range(6)])
KINDS = st.sampled_from([MessageType.JOB_PROGRESS, MessageType.UNKNOWN, *sorted(ENDS)])
EARLY_MAX, EARLY_BYTES_MAX, MESSAGES_MAX = 3, 100, 4


def nothing() -> None:
    """Nobody waits."""


class Conversations(RuleBasedStateMachine):
    """Jobs come, are named, get messages and go, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Correlation(messages_max=MESSAGES_MAX, early_max=EARLY_MAX, early_bytes_max=EARLY_BYTES_MAX)
        self.boxes: dict[str, Mailbox] = {}
        self.number = 0

    @rule(key=KEYS)
    def a_job_is_expected(self, key: str) -> None:
        if key in self.boxes:
            try:
                self.table.expect(key, nothing)
            except ValueError:
                return
            raise AssertionError("an id was given twice")
        self.boxes[key] = self.table.expect(key, nothing)

    @rule(key=KEYS, other=KEYS)
    def a_job_gets_another_name(self, key: str, other: str) -> None:
        box = self.boxes.get(key)
        if box is None or (other in self.boxes and self.boxes[other] is not box):
            return
        self.table.alias(box, other)
        self.boxes[other] = box

    @rule(key=KEYS, kind=KINDS, size=st.integers(0, 120))
    def a_message_comes(self, key: str, kind: MessageType, size: int) -> None:
        self.number += 1
        box, had_ended = self.boxes.get(key), key in self.boxes and self.boxes[key].ended
        fate = self.table.deliver(key, Delivery(kind, (key, self.number), size))
        if box is not None:
            assert fate is (Fate.DUPLICATE if had_ended else Fate.DELIVERED)
        elif kind not in ENDS:
            assert fate in (Fate.STRAY, Fate.DUPLICATE)

    @rule(key=KEYS)
    def a_job_reads(self, key: str) -> None:
        box = self.boxes.get(key)
        if box is None:
            return
        seen: list[Delivery] = []
        while (delivery := box.take()) is not None:
            seen.append(delivery)
        assert len(seen) <= MESSAGES_MAX + 1
        assert [d.kind in ENDS for d in seen] == [False] * (len(seen) - 1) + [d.kind in ENDS for d in seen[-1:]]
        assert all(d.message[0] in box.keys for d in seen)
        numbers = [d.message[1] for d in seen if d.kind not in ENDS]
        assert numbers == sorted(numbers)

    @rule(key=KEYS)
    def a_job_goes(self, key: str) -> None:
        box = self.boxes.get(key)
        if box is not None:
            self.table.forget(box)
            self.boxes = {name: other for name, other in self.boxes.items() if other is not box}
            # Its end, coming again, is for nobody.
            end = Delivery(MessageType.JOB_COMPLETE, (key, 0))
            assert self.table.deliver(key, end) is Fate.DUPLICATE

    @invariant()
    def nothing_grows(self) -> None:
        assert self.table.early_bytes <= EARLY_BYTES_MAX
        assert len(self.table.early) <= EARLY_MAX
        assert len(self.table) == len({id(box) for box in self.boxes.values()})


TestConversations = Conversations.TestCase
TestConversations.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(KINDS, max_size=30), st.integers(0, 30))
def test_a_job_gets_its_end_once_whenever_it_is_expected(kinds: list[MessageType], when: int) -> None:
    """The end is there whether the job was expected before it came or after, unless too many others came between."""
    table = Correlation(messages_max=100, early_max=100, early_bytes_max=10_000)
    box = None
    for number, kind in enumerate(kinds):
        if number == when:
            box = table.expect("a", nothing)
        table.deliver("a", Delivery(kind, number))
    box = box or table.expect("a", nothing)
    got = []
    while (delivery := box.take()) is not None:
        got.append(delivery)
    first = next((number for number, kind in enumerate(kinds) if kind in ENDS), None)
    assert [d.message for d in got if d.kind in ENDS] == ([] if first is None else [first])


def test_a_slow_reader_loses_progress_and_never_the_end() -> None:
    table = Correlation(messages_max=2, early_max=1, early_bytes_max=1)
    box = table.expect("a", nothing)
    for number in range(5):
        table.deliver("a", Delivery(MessageType.JOB_PROGRESS, number))
    table.deliver("a", Delivery(MessageType.JOB_COMPLETE, "end"))
    assert [box.take(), box.take(), box.take(), box.take()] == [
        Delivery(MessageType.JOB_PROGRESS, 3),
        Delivery(MessageType.JOB_PROGRESS, 4),
        Delivery(MessageType.JOB_COMPLETE, "end"),
        None,
    ]
    assert box.dropped == 3


def test_an_end_that_came_first_outweighs_a_failure_and_not_the_other_way_round() -> None:
    table = Correlation(messages_max=2, early_max=1, early_bytes_max=1)
    done, broken = table.expect("a", nothing), table.expect("b", nothing)
    table.deliver("a", Delivery(MessageType.JOB_COMPLETE, 1))
    table.fail_all(ServiceUnavailable("gone"))
    end = done.take()
    assert end is not None
    assert end.message == 1
    assert table.deliver("b", Delivery(MessageType.JOB_COMPLETE, 2)) is Fate.DUPLICATE
    try:
        broken.take()
    except ServiceUnavailable as error:
        assert error.message == "gone"
    else:
        raise AssertionError("the failure was not raised")


def test_messages_without_an_id_reach_nobody() -> None:
    table = Correlation(messages_max=2, early_max=1, early_bytes_max=1)
    box = table.expect("a", nothing)
    assert table.deliver(None, Delivery(MessageType.JOB_COMPLETE, 1)) is Fate.STRAY
    assert box.take() is None


# --- the connection --------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(list(LinkEvent)), max_size=60))
def test_the_link_only_gives_up_to_down_and_only_serves_open(events: list[LinkEvent]) -> None:
    link, opened = Link(), False
    for event in events:
        try:
            link, action = link.step(event)
        except KeyError:
            continue  # cannot happen in this state
        opened = (opened or action is LinkAction.SERVE) and action is not LinkAction.GIVE_UP
        assert (link.state is LinkState.DOWN) == (action is LinkAction.GIVE_UP)
        assert (link.state is LinkState.OPEN) == (action is LinkAction.SERVE)
        assert (link.state is LinkState.WAITING) == (action is LinkAction.WAIT)
        assert action is not LinkAction.WAIT or opened  # nothing to save before it was open
        assert (link.attempt == 0) == (link.state is LinkState.OPEN or not opened)


def test_a_first_attempt_that_fails_gives_up_and_later_ones_count_their_waits() -> None:
    link, _ = Link().step(LinkEvent.WANTED)
    assert link.step(LinkEvent.FAILED) == (Link(), LinkAction.GIVE_UP)
    link, _ = link.step(LinkEvent.OPENED)
    waits = []
    link, _ = link.step(LinkEvent.LOST)
    for _ in range(3):
        waits.append(link.attempt)
        link, _ = link.step(LinkEvent.WAITED)
        link, _ = link.step(LinkEvent.FAILED)
    assert waits == [1, 2, 3]
    assert link.step(LinkEvent.SPENT) == (Link(), LinkAction.GIVE_UP)
    link, _ = link.step(LinkEvent.WAITED)
    link, _ = link.step(LinkEvent.OPENED)
    assert link == Link(LinkState.OPEN, 0, True)
    assert link.step(LinkEvent.ENDED) == (Link(), LinkAction.GIVE_UP)
