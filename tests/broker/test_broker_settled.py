"""How a worker hears that its Done frames are durable: by the way, and soon."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from broker_process import RawBroker, group

from empd.broker.workers import SETTLE_NS_MAX, WorkerDesk
from empd.clock import Instant
from empd.queue.machine import Queue
from empd.queue.policy import Policy
from empd.wire import codec, frames


def test_the_next_claim_says_it(broker: RawBroker) -> None:
    client, worker = broker.client(), broker.worker(slots=1)
    client.accepted(group(b"\xc0", b"\xc0"))
    worker.complete(worker.claim(), settle=False)
    assert worker.settled() == "Assign"
    worker.complete(worker.claim(), settle=False)
    assert worker.settled() == "Settled", "there is no next claim"


def test_a_busy_broker_says_it_in_time() -> None:
    sent: list[tuple[bytes, Any]] = []
    outbox: Any = SimpleNamespace(put=lambda *frame: sent.append(frame))
    desk = WorkerDesk(Queue(Policy(services={})), outbox, "instance")
    for name in ("one", "other"):
        hello = frames.WorkerHello(frames.VERSION, name, 1, "w", 1, [], [], {})
        desk.handle(name.encode(), codec.encode(hello), Instant(5, 5))
    sent.clear()
    for mono_ns, name, number in ((10, b"one", 3), (11, b"one", 4), (12, b"other", 7)):
        desk.handle(name, codec.encode(frames.Done(number, [])), Instant(mono_ns, mono_ns))
    due_ns = desk.settle(12, idle=False)
    assert due_ns == 10 + SETTLE_NS_MAX
    assert not sent
    assert desk.settle(due_ns, idle=False) is None
    assert sent == [(b"one", frames.Settled(4)), (b"other", frames.Settled(7))]
