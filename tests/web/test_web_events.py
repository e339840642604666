"""Event streams: transitions, resuming by Last-Event-ID, lossy events, ends; and row decoding."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest
import zmq
from web_broker import BrokerDouble
from web_harness import Web, wait_for

from empd.job import Outcome, format_id, parse_id
from empd.queue import rows
from empd.queue.rows import Kind
from empd.web.events import STREAM_EVENTS_MAX, Hub
from empd.web.transitions import Transition, of_row
from empd.wire import codec
from empd.wire.telemetry import JobLog, JobPartial, JobProgress

EventFields = tuple[str, str, Any]
"""id ("" for none), name, data."""


async def parse(answer: aiohttp.ClientResponse) -> AsyncIterator[EventFields]:
    fields: dict[str, str] = {}
    async for raw in answer.content:
        line = raw.decode().rstrip("\n")
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            if "event" in fields:
                yield fields.get("id", ""), fields["event"], json.loads(fields["data"])
            fields = {}


async def collect(web: Web, path: str, until: str, last_id: str = "", then: Any = None) -> list[EventFields]:
    """Events up to the first one named `until`; `then` is called in a thread after the first event."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    found: list[EventFields] = []
    async with (
        asyncio.timeout(20),
        aiohttp.ClientSession() as session,
        session.get(web.url + path, headers=headers) as answer,
    ):
        assert answer.status == 200, await answer.text()
        if then is not None and path == "/v1/events":
            await asyncio.to_thread(then)
            then = None
        async for event in parse(answer):
            found.append(event)
            if then is not None:
                await asyncio.to_thread(then)
                then = None
            if event[1] == until:
                break
    return found


def hold(web: Web) -> tuple[str, int]:
    name = web.ask("POST", "/v1/jobs", {"service": "hold"}).json()["id"]
    return name, parse_id(name)


def test_job_stream_begins_with_the_state_and_ends_with_the_job(web: Web, broker: BrokerDouble) -> None:
    name, number = hold(web)

    def go_on() -> None:
        broker.add_row(Kind.ASSIGNED, rows.Assigned("gpu0", 1, 9, [number - 1, number]))
        broker.finish(number, result=msgspec.msgpack.encode(42))

    events = asyncio.run(collect(web, f"/v1/jobs/{name}/events", "nothing", then=go_on))
    assert [event[1] for event in events] == ["state", "assigned", "completed"]
    assert events[1][2]["epoch"] == 10
    assert events[2][2]["result"] == 42
    assert int(events[2][0]) == broker.rows[-1][0]


def test_job_stream_resumes_behind_the_last_event(web: Web, broker: BrokerDouble) -> None:
    name, number = hold(web)
    seqs = [broker.add_row(Kind.ASSIGNED, rows.Assigned("gpu0", 1, 9, [number]))]
    requeued = rows.Requeued([rows.RequeuedJob(number, 9, 1, 2_000_000_000)])
    seqs.append(broker.add_row(Kind.REQUEUED, requeued))
    broker.add_row(Kind.ASSIGNED, rows.Assigned("gpu1", 1, 30, [7]))
    seqs.append(broker.add_row(Kind.ASSIGNED, rows.Assigned("gpu1", 1, 11, [number])))
    seqs.append(broker.finish(number))
    events = asyncio.run(collect(web, f"/v1/jobs/{name}/events", "nothing", last_id=str(seqs[0])))
    assert [(int(event[0]), event[1]) for event in events] == [
        (seqs[1], "requeued"), (seqs[2], "assigned"), (seqs[3], "completed"),
    ]  # fmt: skip
    assert events[0][2]["cause"] == "worker_crashed"
    assert events[0][2]["delay_s"] == 2.0


def test_resuming_after_the_end_is_204(web: Web, broker: BrokerDouble) -> None:
    name, number = hold(web)
    seq = broker.finish(number)
    answer = web.ask("GET", f"/v1/jobs/{name}/events", Last_Event_ID=str(seq))
    assert answer.status == 204


def test_stream_of_an_ended_job_tells_its_end_and_closes(web: Web, broker: BrokerDouble) -> None:
    name, number = hold(web)
    broker.finish(number, Outcome.FAILED, None)
    events = asyncio.run(collect(web, f"/v1/jobs/{name}/events", "nothing"))
    assert [event[1] for event in events] == ["failed"]


def test_stream_of_no_job_is_404_and_of_a_bad_id_400(web: Web) -> None:
    assert web.ask("GET", f"/v1/jobs/{format_id(99)}/events").status == 404
    assert web.ask("GET", "/v1/events", Last_Event_ID="x").status == 400
    assert web.ask("GET", "/v1/jobs/zz/events").status == 400


def test_all_events_resume_without_gap_or_repetition(web: Web, broker: BrokerDouble) -> None:
    for number in range(1, 40):
        broker.add_row(Kind.ASSIGNED, rows.Assigned("gpu0", 1, 1, [number, number + 1000]))

    def more() -> None:
        for number in range(40, 60):
            broker.add_row(Kind.ASSIGNED, rows.Assigned("gpu0", 1, 1, [number, number + 1000]))
        broker.finish(60)

    events = asyncio.run(collect(web, "/v1/events", "completed", last_id="10", then=more))
    told = [parse_id(event[2]["job"]) for event in events]
    assert told == [each for number in range(11, 60) for each in (number, number + 1000)] + [60]
    # Only the last event of a row carries its number: a stream that is cut inside a row gets the row again.
    assert [event[0] for event in events[:4]] == ["", "11", "", "12"]


def test_rows_that_are_gone_are_told_as_a_reset(web: Web, broker: BrokerDouble) -> None:
    broker.first_seq = 50
    broker.add_row(Kind.ASSIGNED, rows.Assigned("gpu0", 1, 1, [5]))
    events = asyncio.run(collect(web, "/v1/events", "assigned", last_id="3"))
    assert [event[1] for event in events] == ["reset", "assigned"]


def test_streams_go_on_after_a_broker_restart(web: Web, broker: BrokerDouble) -> None:
    name, number = hold(web)

    def restart() -> None:
        broker.stop()
        broker.start()
        broker.finish(number)

    events = asyncio.run(collect(web, f"/v1/jobs/{name}/events", "nothing", then=restart))
    assert [event[1] for event in events] == ["state", "completed"]


def test_progress_logs_and_partials_reach_the_stream_without_ids(web: Web, broker: BrokerDouble) -> None:
    name, number = hold(web)

    def push() -> None:
        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.connect(f"ipc://{web.runtime_dir}/telemetry.sock")
            for said in (
                JobProgress(number, 9, 1, 0.25, "denoising", 5, 20),
                JobLog(number, 9, 2, "a line\nanother"),
                JobPartial(number, 9, 3, "msgpack", msgspec.msgpack.encode({"y": b"\x00"})),
            ):
                socket.send(codec.encode(said))
            socket.send(b"\xc1 no telemetry")
            wait_for(lambda: web.get(f"/v1/jobs/{name}/log")["lines"], "the log line")
            wait_for(lambda: web.get(f"/v1/jobs/{name}")["progress"], "the progress")
        broker.finish(number)

    events = asyncio.run(collect(web, f"/v1/jobs/{name}/events", "nothing", then=push))
    assert [(event[0], event[1]) for event in events[1:4]] == [("", "progress"), ("", "log"), ("", "partial")]
    assert events[1][2]["fraction"] == 0.25
    assert events[2][2]["text"] == "a line\nanother"
    assert events[3][2]["value"] == {"y": {"$base64": "AA=="}}
    assert web.get(f"/v1/jobs/{name}/log")["lines"][0]["text"] == "a line\nanother"


def test_nothing_is_followed_while_nobody_listens(web: Web, broker: BrokerDouble) -> None:
    name, number = hold(web)
    wait_for(lambda: broker.subscribed, "the projector's subscription")
    assert {each.consumer for each in broker.subscribed} == {"history"}
    asyncio.run(collect(web, f"/v1/jobs/{name}/events", "nothing", then=lambda: broker.finish(number)))
    assert "web" in {each.consumer for each in broker.subscribed}


# --- without a process -----------------------------------------------------------------------------------------------


def test_a_stream_that_falls_behind_ends() -> None:
    async def scenario() -> None:
        hub = Hub()
        stream = hub.open(None)
        for seq in range(1, STREAM_EVENTS_MAX + 10):
            hub.publish(seq, [Transition(1, "assigned", {})])
        taken = await stream.take(0.1)
        assert taken is not None
        assert len(taken) == STREAM_EVENTS_MAX
        assert await stream.take(0.1) is None
        hub.leave(stream)
        hub.leave(stream)
        assert len(hub) == 0

    asyncio.run(scenario())


def test_taken_rows_leave_out_what_was_not_accepted() -> None:
    options = msgspec.Raw(codec.encode(codec.frames.JobOptions(service="s")))
    submit = codec.frames.Submit(1, 100, [codec.frames.JobGroup(options, [b"", b"", b""])])
    taken = rows.Taken(msgspec.Raw(codec.encode(submit)), [codec.frames.Refusal(0, "refused", "")], [(2, 77)], [])
    told = of_row((1, 1, Kind.TAKEN, 3, codec.encode(taken)))
    assert [(each.job_id, each.name) for each in told] == [(3 << 32 | 101, "submitted")]


@pytest.mark.parametrize("kind", [Kind.SUBMITTED, Kind.ASSIGNED, Kind.RESULTS, Kind.TAKEN])
def test_damaged_rows_raise_value_error(kind: Kind) -> None:
    with pytest.raises(ValueError):
        of_row((1, 1, kind, 0, b"\xc1"))
