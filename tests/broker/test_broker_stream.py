"""The event stream on the wire: from any row on, at the reader's pace, kept until its named consumers have it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from broker_process import WAIT_S, RawBroker, RawClient, group

from empd.broker.stream import WINDOW_BYTES_MAX
from empd.queue.rows import Kind, decode_body
from empd.store.journal import Row
from empd.wire import frames

JOURNAL_BYTES = 16 << 20  # the write-ahead log alone is laid out to 8 MiB
BODY = b"\xc5\xf0\x00" + b"x" * 0xF000  # a payload of 60 KiB, so that few jobs make a large journal


def take_rows(client: RawClient, upto: int, consumer: str = "") -> list[Row]:
    """Rows as they come, each frame acknowledged, until row `upto`."""
    rows: list[Row] = []
    while not rows or rows[-1].seq < upto:
        frame = client.hear(frames.Rows, consumer=consumer)
        rows += [Row(*row) for row in frame.rows]
        client.say(frames.CursorAck(consumer, rows[-1].seq))
    return rows


def last_seq(client: RawClient) -> int:
    seq: int = client.ask(frames.Status)["journal"]["last_seq"]
    return seq


def finish(broker: RawBroker, client: RawClient, count: int, payload: bytes = b"\xc0") -> list[int]:
    """Jobs that go in, are run and end."""
    worker = broker.worker(slots=64)
    ids: list[int] = []
    for _ in range(count):
        ids += client.accepted(group(payload))
        worker.complete(worker.claim())
        client.result(ids[-1])
    broker.gone(worker)
    return ids


def test_rows_come_gaplessly_and_tell_each_jobs_way(broker: RawBroker) -> None:
    client = broker.client()
    ids = finish(broker, client, 20)
    client.say(frames.Subscribe("", 1))
    rows = take_rows(client, last_seq(client))
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    kinds = [Kind(row.kind) for row in rows]
    assert kinds[0] is Kind.STARTED
    assert kinds.count(Kind.SUBMITTED) == kinds.count(Kind.ASSIGNED) == kinds.count(Kind.RESULTS) == 20
    ended = [decode_body(row.kind, row.body) for row in rows if row.kind == Kind.RESULTS]
    assert [job.id for results in ended for each in results.groups for job in each.jobs] == ids


@pytest.mark.parametrize("from_seq", [-5, 0, 1, 7])
def test_a_subscription_begins_where_it_asks(broker: RawBroker, from_seq: int) -> None:
    client = broker.client()
    finish(broker, client, 5)
    client.say(frames.Subscribe("", from_seq))
    assert client.hear(frames.Rows).rows[0][0] == max(1, from_seq)


def test_a_subscription_from_the_future_begins_there(broker: RawBroker) -> None:
    client = broker.client()
    last = last_seq(client)
    client.say(frames.Subscribe("", last + 4))
    finish(broker, client, 3)
    assert client.hear(frames.Rows).rows[0][0] == last + 4


def test_only_the_kinds_asked_for_come(broker: RawBroker) -> None:
    client = broker.client()
    finish(broker, client, 10)
    client.say(frames.Subscribe("", 1, kinds=[Kind.RESULTS]))
    heard = []
    while len(heard) < 10:
        rows = client.hear(frames.Rows).rows
        heard += [row[2] for row in rows]
        client.say(frames.CursorAck("", rows[-1][0]))
    assert set(heard) == {Kind.RESULTS}


@pytest.mark.parametrize(("window", "ahead"), [(1, 1), (3, 3), (0, 1), (-7, 1)])
def test_no_more_frames_come_than_the_window_allows(broker: RawBroker, window: int, ahead: int) -> None:
    client = broker.client()
    finish(broker, client, 40, BODY)
    client.say(frames.Subscribe("", 1, window=window, kinds=[Kind.SUBMITTED]))
    first = [client.hear(frames.Rows) for _ in range(ahead)]
    # Each answer comes after what was sent before it: a frame too many would be here by now.
    for _ in range(20):
        client.ask(frames.Status)
    assert not [frame for frame in client.take() if type(frame) is frames.Rows]
    client.say(frames.CursorAck("", first[0].rows[-1][0]))
    following = client.hear(frames.Rows)
    assert following.rows[0][0] > first[-1].rows[-1][0]


def test_a_consumer_that_acknowledges_nothing_is_sent_a_bounded_number_of_bytes(broker: RawBroker) -> None:
    client = broker.client()
    finish(broker, client, 120, BODY)
    client.say(frames.Subscribe("", 1, 256, [Kind.SUBMITTED]))
    sent = [client.hear(frames.Rows)]
    while sum(len(row[4]) for frame in sent for row in frame.rows) < WINDOW_BYTES_MAX:
        sent.append(client.hear(frames.Rows))
    for _ in range(20):  # passes in which it could be sent more
        client.ask(frames.Status)
    assert not [frame for frame in client.take() if type(frame) is frames.Rows]
    client.say(frames.CursorAck("", sent[0].rows[-1][0]))
    following = client.hear(frames.Rows)
    assert following.rows[0][0] > sent[-1].rows[-1][0]


def test_an_acknowledgement_of_what_was_not_sent_is_not_believed(broker: RawBroker) -> None:
    client = broker.client()
    finish(broker, client, 40, BODY)
    client.say(frames.Subscribe("named", 1, window=1, kinds=[Kind.SUBMITTED]))
    sent = client.hear(frames.Rows).rows[-1][0]
    last = last_seq(client)
    client.say(frames.CursorAck("named", 1 << 40))
    take_rows(client, sent + 1, "named")
    assert client.ask(frames.Status)["consumers"].get("named", 0) <= last_seq(client)
    assert last < 1 << 40


def test_a_named_consumers_cursor_survives_the_broker(broker: RawBroker) -> None:
    client = broker.client()
    finish(broker, client, 5)
    client.say(frames.Subscribe("reader", 1))
    seen = take_rows(client, last_seq(client), "reader")[-1].seq

    def remembered(at: RawClient) -> int:
        cursor: int = at.ask(frames.Status)["consumers"].get("reader", 0)
        return cursor

    # The broker journals cursors once a second, and the row that says so is one more row of the stream.
    deadline_s = time.monotonic() + WAIT_S
    while remembered(client) < seen:
        assert time.monotonic() < deadline_s
        if client.socket.poll(20):
            take_rows(client, 0, "reader")
    broker.restart()
    assert remembered(broker.client()) >= seen


def trimmed_past(broker: RawBroker, client: RawClient, seq: int) -> int:
    """Makes traffic until the journal no longer has row `seq`; returns its first row. What is refused while trimming
    is behind is sent again, as a client would."""
    worker = broker.worker(slots=64)
    deadline_s = time.monotonic() + WAIT_S
    while (journal := client.ask(frames.Status)["journal"])["first_seq"] <= seq:
        assert time.monotonic() < deadline_s, f"not trimmed: {journal}"
        [job_id] = client.submit(group(BODY))
        if not client.hear(frames.Accepted, number=client.number).refused:
            worker.complete(worker.claim())
            client.result(job_id)
    broker.gone(worker)
    first: int = journal["first_seq"]
    return first


def taken(client: RawClient) -> None:
    """Waits until jobs are taken again."""
    deadline_s = time.monotonic() + WAIT_S
    while any("journal" in problem for problem in client.ask(frames.Status)["problems"]):
        assert time.monotonic() < deadline_s


def test_who_asks_for_trimmed_rows_is_reset_to_a_whole_picture(make_broker: Callable[..., RawBroker]) -> None:
    broker = make_broker(journal_bytes_max=JOURNAL_BYTES)
    client = broker.client()
    waiting = client.accepted(group(b"\xc0", b"\x01", service="other", keys=["first", ""]))
    first = trimmed_past(broker, client, 10)
    reader = broker.client()
    reader.say(frames.Subscribe("late", 1))
    reset = reader.hear(frames.Reset)
    assert reset.first_seq >= first
    rows = take_rows(reader, last_seq(client), "late")
    assert rows[0].seq == reset.first_seq
    carried = [job.id for row in rows if row.kind == Kind.CARRY for job in decode_body(row.kind, row.body).jobs]
    assert set(waiting) <= set(carried), "what still lives is in the snapshot"


def test_a_consumer_that_is_overtaken_is_reset_in_its_stream(make_broker: Callable[..., RawBroker]) -> None:
    broker = make_broker(journal_bytes_max=JOURNAL_BYTES)
    client, slow = broker.client(), broker.client()
    slow.say(frames.Subscribe("slow", 1, window=1))
    last = slow.hear(frames.Rows).rows[-1][0]
    trimmed_past(broker, client, last + 50)
    slow.say(frames.CursorAck("slow", last))
    assert slow.hear(frames.Reset).first_seq > last + 1


def test_trimming_loses_nothing_that_lives(make_broker: Callable[..., RawBroker]) -> None:
    """Waiting, delayed, held, dead and keyed jobs, sessions and drains, in a journal that was trimmed behind them."""
    broker = make_broker(journal_bytes_max=JOURNAL_BYTES)
    client = broker.client()
    holder = broker.worker("holder", services=("narrow",))
    [held] = client.accepted(group(b"\xc0", service="narrow"))
    job = holder.claim()
    [waiting] = client.accepted(group(b"\x07", service="other", keys=["k"], priority=7))
    client.ask(frames.Operate, "drain", ["nobody"])
    trimmed_past(broker, client, 20)
    broker.restart()
    assert client.welcome is not None
    welcome = client.hello(client.welcome.session, client.welcome.token)
    assert welcome.session == held >> 32
    assert holder.hello(services=("narrow",), held=[(job.id, job.epoch)]).abandon == []
    assert client.state_of(held) == "assigned"
    assert client.state_of(waiting) == "waiting"
    assert client.ask(frames.Status)["drained"] == ["nobody"]
    taken(client)
    client.submit(group(b"\x07", service="other", keys=["k"]))
    assert client.hear(frames.Accepted, number=client.number).existing == [(0, waiting)]
    holder.complete(job)
    client.ask(frames.Ask, [held], answer=frames.States)
    assert client.result(held).attempts == 1
    other = broker.worker("other", services=("other",))
    assert other.claim().payload == b"\x07"
