"""Whatever is sent to the broker's sockets: it lives, serves others, and says what was wrong."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import zmq
from broker_process import RawBroker, RawClient, group, options
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from empd.errors import FailureClass
from empd.job import JobFilter, Outcome
from empd.payload import FRAME_BYTES_MAX, INLINE_BYTES_MAX, BlobRef
from empd.result import DoneJob, JobError
from empd.wire import codec, frames

FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)

VALID_CLIENT = [
    frames.ClientHello(1),
    frames.Submit(1, 1, [group(b"\xc0", b"\x01", keys=["a", ""]), group(b"\xc0", priority=3, labels={"a": "b"})]),
    frames.Submit(2, 9, [group(BlobRef("0" * 32, 9, 9))]),
    frames.Ask(1, [1 << 32 | 1, 7]),
    frames.Cancel(2, [1 << 32 | 1], JobFilter(service="echo", labels={"a": "b"}), True),
    frames.Retry(3, [], JobFilter(states=["dead"])),
    frames.List(4, JobFilter(limit=3, cursor=1)),
    frames.Status(5),
    frames.Operate(6, "resume", ["w-0"]),
    frames.Subscribe("fuzz", 1, 2, [5]),
    frames.CursorAck("fuzz", 3),
    frames.Bye(True),
]
VALID_WORKER = [
    frames.WorkerHello(1, "f", 9, "w", 1, [frames.ServiceOffer("echo", 1)], [(1, 2)], {"a": 1}, {"b": 2}, 3),
    frames.Capacity(2, [frames.ServiceOffer("echo", 2, "", ["m"])]),
    frames.Done(1, [DoneJob(1, 2, b"\xc0")], [frames.FailedJob(3, 4, JobError("internal", "x"), True)], [(5, 6)]),
    frames.Checkpoint(1, 2, 3, b"x"),
    frames.StateSet(1, 2, 3, "k", 0, b"v"),
    frames.StateGet(1, "k"),
    frames.Abandoned([(1, 2)]),
]
NUMBERS = st.one_of(
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.sampled_from([0, -1, 1, (1 << 31), (1 << 32) - 1, (1 << 63) - 1, (1 << 63), (1 << 64) - 1]),
    st.floats(),
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.binary(max_size=40) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def only_broker() -> Iterator[RawBroker]:
    """One broker for all bytes of this module: none of them may end it."""
    broker = RawBroker()
    broker.start()
    yield broker
    broker.close()


@pytest.fixture
def shared(only_broker: RawBroker) -> Iterator[RawBroker]:
    """The broker, with the workers and jobs of no other test; after each test it still serves others."""
    yield only_broker
    assert only_broker.lives, only_broker.log()[-3000:]
    only_broker.clear()
    serves(only_broker)


def serves(broker: RawBroker) -> None:
    """Somebody else's job goes through, from submit to result."""
    assert broker.lives, broker.log()[-3000:]
    client, worker = broker.client(), broker.worker("good")
    [job_id] = client.accepted(group(b"\xc0", priority=100))
    while (job := worker.claim()).id != job_id:
        worker.complete(job)
    worker.complete(job)
    assert client.result(job_id).outcome == Outcome.COMPLETED
    broker.gone(worker)
    client.close()
    worker.close()


def mutated(valid: list[Any]) -> st.SearchStrategy[bytes]:
    """A valid frame with one or more of its values, or of its bytes, replaced."""

    @st.composite
    def strategy(draw: st.DrawFn) -> bytes:
        parts: list[Any] = msgspec.msgpack.decode(codec.encode(draw(st.sampled_from(valid))))
        for _ in range(draw(st.integers(1, 3))):
            spot: Any = parts
            while True:
                keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
                if not keys:
                    break
                key = draw(st.sampled_from(keys))
                if isinstance(spot[key], (list, dict)) and spot[key] and draw(st.integers(0, 3)):
                    spot = spot[key]
                    continue
                # The tag mostly stays: a frame of another kind says little about this one.
                if spot is not parts or key != 0:
                    spot[key] = draw(VALUES)
                break
        data = bytearray(msgspec.msgpack.encode(parts))
        if draw(st.booleans()):
            at = draw(st.integers(0, len(data) - 1))
            data[at] = draw(st.integers(0, 255))
        return bytes(data)

    return strategy()


# --- fuzz ---


@FUZZ
@given(said=st.lists(st.binary(max_size=200) | mutated(VALID_CLIENT), min_size=1, max_size=12), greets=st.booleans())
def test_any_frames_of_a_client(shared: RawBroker, said: list[bytes], greets: bool) -> None:
    client = shared.client(hello=greets)
    client.say(*said)
    # The marker comes back, after an answer to each frame that had to have one: nothing was too much.
    client.say(frames.ClientHello(1), frames.Status(424242))
    client.hear(frames.Reply, request=424242)
    client.close()
    assert shared.lives


@FUZZ
@given(said=st.lists(st.binary(max_size=200) | mutated(VALID_WORKER), min_size=1, max_size=12), greets=st.booleans())
def test_any_frames_of_a_worker(shared: RawBroker, said: list[bytes], greets: bool) -> None:
    worker = shared.worker("fuzz") if greets else shared.named("fuzz")
    worker.say(*said)
    worker.hello()
    worker.say(frames.StateGet(4242, "k"))
    worker.hear(frames.StateValue, request=4242)
    shared.gone(worker)
    worker.close()


@pytest.mark.parametrize("seed", range(3))
def test_noise_of_all_sizes(shared: RawBroker, seed: int) -> None:
    chance = random.Random(seed)
    client, worker = shared.client(), shared.worker("noise")
    for _ in range(500):
        noise = chance.randbytes(chance.choice((0, 1, 2, 17, 300, 5000)))
        client.say(noise)
        worker.say(noise)
    client.hear(frames.Error)
    client.ask(frames.Status)
    worker.hear(frames.Error)
    shared.gone(worker)
    serves(shared)


def test_deep_nesting_is_refused(shared: RawBroker) -> None:
    client = shared.client()
    client.say(b"\x91" * 100_000, b"\x92\x02" * 50_000, b"\x94\x02\x01\x01" + b"\x91" * 200_000)
    for _ in range(3):
        client.hear(frames.Error)
    # Options are decoded a second time, by themselves; the deeper ones fail with the frame around them.
    for depth, refused in ((20, frames.Accepted), (2000, frames.Error)):
        client.say(frames.Submit(1, 1, [frames.JobGroup(msgspec.Raw(b"\x91" * depth + b"\xc0"), [b""])]))
        answer = client.hear(refused)
        failure = answer.failure if refused is frames.Error else answer.refused[0].failure
        assert failure == FailureClass.INVALID_INPUT
    serves(shared)


def test_messages_of_several_parts_and_none(shared: RawBroker) -> None:
    client, worker = shared.client(), shared.worker("parts")
    for peer in (client, worker):
        peer.socket.send_multipart([b"", codec.encode(frames.Status(1))])
        assert peer.hear(frames.Error).failure == FailureClass.INVALID_INPUT
        peer.socket.send_multipart([codec.encode(frames.Status(1)), b""])
        assert peer.hear(frames.Error).failure == FailureClass.INVALID_INPUT
        peer.socket.send_multipart([b"a"] * 300)
        peer.hear(frames.Error)
        peer.say(b"")
        peer.hear(frames.Error)
    shared.gone(worker)
    serves(shared)


def test_frames_of_the_other_side_are_no_frames(shared: RawBroker) -> None:
    client, worker = shared.client(), shared.worker("turned")
    for frame in (*VALID_WORKER, frames.Accepted(1), frames.Settled(1)):
        client.say(frame)
        assert "not a frame of protocol" in client.hear(frames.Error).message
    for frame in (*VALID_CLIENT, frames.Settled(1), frames.Status(1)):
        worker.say(frame)
        assert "not a frame of protocol" in worker.hear(frames.Error).message
    shared.gone(worker)
    serves(shared)


# --- values that a frame may carry and no job can have ---


@pytest.mark.parametrize("name", ["timeout_s", "queue_timeout_s", "total_timeout_s", "not_before"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), -1.0, 1e308])
def test_times_that_are_none_are_refused(shared: RawBroker, name: str, value: float) -> None:
    client = shared.client()
    client.submit(group(b"\xc0", **{name: value}))
    [refusal] = client.hear(frames.Accepted, number=1).refused
    assert refusal.failure == FailureClass.INVALID_INPUT
    assert shared.lives
    client.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("priority", 101),
        ("priority", -1),
        ("priority", (1 << 64) - 1),
        ("retries", -1),
        ("retries", 1 << 63),
        ("encoding", "pickle"),
        ("requirements", {"": {"": []}}),
        ("requirements", {"model": float("nan")}),
        ("after", [1]),
        ("resources", {"vram": 1}),
    ],
)
def test_options_that_no_job_can_have_are_refused(shared: RawBroker, name: str, value: Any) -> None:
    client = shared.client()
    raw = msgspec.msgpack.decode(bytes(options("narrow")))
    raw[frames.JobOptions.__struct_fields__.index(name)] = value
    client.submit(frames.JobGroup(msgspec.Raw(msgspec.msgpack.encode(raw)), [b"\xc0"]))
    [refusal] = client.hear(frames.Accepted, number=1).refused
    assert refusal.failure in (FailureClass.INVALID_INPUT, FailureClass.UNMATCHABLE)
    assert refusal.reason
    client.close()


@pytest.mark.parametrize(
    "blob_id", ["../journal.db", "../../etc/passwd", "/etc/passwd", "", "\0", "a/b", "." * 32, "0" * 32, "é" * 32]
)
def test_blobs_that_are_not_there_are_refused_and_nothing_is_touched(shared: RawBroker, blob_id: str) -> None:
    client = shared.client()
    for size in (0, 1, -1, 1 << 62):
        client.submit(group(BlobRef(blob_id, size, 0)))
        [refusal] = client.hear(frames.Accepted, number=client.number).refused
        assert refusal.failure in (FailureClass.INVALID_INPUT, FailureClass.NOT_FOUND)
    assert (shared.state_dir / "journal.db").exists()
    client.close()


def test_an_inline_payload_above_the_limit_is_refused_alone(shared: RawBroker) -> None:
    client = shared.client()
    client.submit(group(b"x" * (INLINE_BYTES_MAX + 1), b"x" * INLINE_BYTES_MAX))
    answer = client.hear(frames.Accepted, number=1)
    assert [refusal.index for refusal in answer.refused] == [0]
    assert "send a blob" in answer.refused[0].reason
    client.close()


def test_a_frame_above_the_limit_is_answered_or_costs_its_sender_the_connection(shared: RawBroker) -> None:
    client = shared.client()
    client.say(b"x" * (FRAME_BYTES_MAX + 1))
    assert f"at most {FRAME_BYTES_MAX} bytes" in client.hear(frames.Error).message
    client.say(b"x" * (64 << 20))
    serves(shared)


def test_submits_of_nothing(shared: RawBroker) -> None:
    client = shared.client()
    for empty in ([], [group()], [group(), group(keys=[])]):
        client.submit(*empty)
        assert client.hear(frames.Accepted, number=client.number).refused == []
    client.accepted(group(b"\xc0"))
    client.close()


def test_a_worker_that_lies_about_slots_and_jobs(shared: RawBroker) -> None:
    client = shared.client()
    ids = client.accepted(group(b"\xc0", b"\xc0"))
    liar = shared.worker("liar", slots=0)
    for slots in (-(1 << 62), (1 << 64) - 1):
        liar.say(frames.Capacity(slots, [frames.ServiceOffer("echo", slots)]))
    liar.say(frames.Capacity(1, [frames.ServiceOffer("echo", 1)]))
    job = liar.claim()
    # It says that it no longer offers what it holds, completes what it never had, and all of it twice.
    liar.say(frames.Capacity(9, [frames.ServiceOffer("other", 1)]))
    liar.report([DoneJob(job.id, job.epoch + 7, b""), DoneJob(1, 1, b"")], [], [(1 << 63, 1 << 63)])
    liar.complete(job, job)
    shared.gone(liar)
    client.ask(frames.Cancel, ids)
    serves(shared)


@pytest.mark.parametrize("size", [0, 64 * 1024, 64 * 1024 + 1])
def test_checkpoints_and_states_are_fenced_and_bounded(shared: RawBroker, size: int) -> None:
    client, worker = shared.client(), shared.worker("keeper")
    client.accepted(group(b"\xc0"))
    job = worker.claim()
    key = f"k{size}"
    fits = size <= 64 * 1024
    worker.say(frames.Checkpoint(1, job.id, job.epoch, b"x" * size))
    worker.hear(frames.Stored if fits else frames.Error, request=1)
    worker.say(frames.Checkpoint(2, job.id, job.epoch + 1, b"x"))
    assert worker.hear(frames.Error, request=2).failure == FailureClass.REFUSED
    worker.say(frames.StateSet(3, job.id, job.epoch, key, 0, b"x" * size))
    worker.hear(frames.Stored if fits else frames.Error, request=3)
    worker.say(frames.StateSet(4, job.id, job.epoch, key, 7, b"y"))
    assert worker.hear(frames.Error, request=4).failure == FailureClass.REFUSED
    worker.say(frames.StateGet(5, key))
    assert worker.hear(frames.StateValue, request=5).version == int(fits)
    shared.gone(worker)
    second = shared.worker("keeper")
    assert second.claim().checkpoint == (b"x" * size if fits else None)
    client.ask(frames.Cancel, [job.id])
    shared.gone(second)
    client.close()


# --- peers that do not behave ---


def test_a_client_that_never_reads_costs_the_others_nothing(shared: RawBroker) -> None:
    silent = shared.client(RCVHWM=1)
    worker = shared.worker("busy", slots=256)
    silent.accepted(*[group(b"\xc0") for _ in range(200)])
    for round_number in range(20):
        silent.say(*[frames.Status(round_number * 1000 + i) for i in range(1000)])
    started_s = time.monotonic()
    serves_other = shared.client()
    [job_id] = serves_other.accepted(group(b"\xc0", priority=90))
    worker.complete(*[worker.claim() for _ in range(201)])
    assert serves_other.result(job_id).outcome == Outcome.COMPLETED
    assert time.monotonic() - started_s < 60
    welcome = silent.welcome
    assert welcome is not None
    silent.close()
    # It comes back, and is told what it did not read.
    again = RawClient(shared.context, shared.clients_endpoint)
    again.hello(welcome.session, welcome.token)
    ids = [welcome.session << 32 | i for i in range(1, 201)]
    assert again.ask(frames.Ask, ids, answer=frames.States).jobs == []
    assert all(again.result(job_id).outcome == Outcome.COMPLETED for job_id in ids)
    again.close()
    shared.gone(worker)


def test_clients_that_come_and_go(shared: RawBroker) -> None:
    before = shared.client().ask(frames.Status)["counters"]["clients"]
    for _ in range(200):
        client = shared.client()
        client.say(frames.Status(1))
        client.close()
    client = shared.client()
    assert client.ask(frames.Status)["counters"]["clients"] <= before + 210
    serves(shared)


def test_two_connections_under_one_identity(shared: RawBroker) -> None:
    first = RawClient(shared.context, shared.clients_endpoint, IDENTITY=b"twin")  # type: ignore[arg-type]
    first.hello()
    second = RawClient(shared.context, shared.clients_endpoint, IDENTITY=b"twin")  # type: ignore[arg-type]
    second.say(frames.ClientHello(1))
    assert first.ask(frames.Status)["pid"]
    serves(shared)
    first.close()
    second.close()


def test_half_a_handshake_of_the_transport(shared: RawBroker) -> None:
    """Bytes below the message layer: somebody connects to the socket and speaks no ZeroMQ."""
    import socket

    for said in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\xff" + b"\0" * 8 + b"\x7f", b"\xff" * 1000):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(shared.clients_endpoint.removeprefix("ipc://"))
            stranger.sendall(said)
    serves(shared)


def test_a_rep_socket_is_no_peer(shared: RawBroker) -> None:
    stranger = shared.context.socket(zmq.REQ)
    stranger.setsockopt(zmq.LINGER, 0)
    stranger.connect(shared.clients_endpoint)
    stranger.send(codec.encode(frames.ClientHello(1)))
    # REQ sends an empty part first: three parts, which are none of this protocol.
    serves(shared)
    stranger.close()
