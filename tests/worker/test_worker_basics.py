"""The way of a job through a real worker process, against a scripted broker."""

from __future__ import annotations

from worker_broker import BrokerDouble, simulation

from empd.lifecycle import Notice
from empd.wire import frames


def test_hello_says_what_the_worker_is_and_offers(broker: BrokerDouble, start) -> None:
    start({"noop": simulation(), "broken": {"connector": "PythonConnector", "api_config": {}}}, slots=4).ready()
    hello = broker.wait(frames.WorkerHello)[0]
    assert (hello.name, hello.generation, hello.worker_type, hello.slots) == ("cpu-0", 77, "w", 4)
    assert hello.held == []
    capacity = broker.of(frames.Capacity)
    offers = {offer.service: offer for offer in (capacity[-1] if capacity else hello).offers}
    assert offers["noop"].slots == 4
    assert offers["broken"].slots == 0
    assert "callable" in offers["broken"].reason


def test_an_assigned_job_is_done_and_settled_work_is_not_held(broker: BrokerDouble, start) -> None:
    start({"noop": simulation(echo=True)}).ready()
    claim = broker.assign("noop", [{"x": 1}])[0]
    assert broker.result(claim) == {"echo": {"x": 1}, "steps": 1}
    broker.roundtrip()
    broker.restart()
    hello = broker.wait(frames.WorkerHello, 2)[1]
    assert hello.held == []


def test_a_batch_of_instant_jobs_comes_back_in_full_frames(broker: BrokerDouble, start) -> None:
    start({"noop": simulation()}, slots=512).ready()
    claims = broker.assign("noop", [None] * 512)
    for claim in claims:
        broker.result(claim)
    sizes = [len(frame.done) for frame in broker.of(frames.Done)]
    assert sum(sizes) == 512
    assert max(sizes) <= 256
    assert len(sizes) <= 16  # two, unless the machine took the worker's turn from it
    assert [frame.number for frame in broker.of(frames.Done)] == list(range(1, len(sizes) + 1))


def test_stop_ends_with_status_0(broker: BrokerDouble, start) -> None:
    worker = start({"noop": simulation()}).ready()
    worker.say(Notice.STOP)
    assert worker.ended() == 0
