"""The way of a job through a real worker process, against a scripted broker."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

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


SPEAKS = """
from empd.worker.log import Log
log = Log(machine="m", worker="w-0", generation=7)
log.redact.learn(["very\\nsecret"])
log("painted", service="paint", connector="painter", colour="blue", key="very\\nsecret", none="")
"""


def test_at_a_terminal_a_record_is_a_plain_line_and_elsewhere_an_object() -> None:
    ours, theirs = os.openpty()
    try:
        subprocess.run([sys.executable, "-c", SPEAKS], check=True, stderr=theirs, timeout=60)
        at_a_terminal = os.read(ours, 4096).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert re.fullmatch(r"[-0-9]{10} [:0-9]{8},\d{3} INFO w-0 paint: painted colour=blue key=\*+\r\n", at_a_terminal)
    elsewhere = subprocess.run([sys.executable, "-c", SPEAKS], check=True, stderr=subprocess.PIPE, timeout=60).stderr
    record = json.loads(elsewhere)
    assert (record["event"], record["worker"], record["connector"]) == ("painted", "w-0", "painter")
