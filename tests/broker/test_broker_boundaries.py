"""The broker dies at each boundary of a pass. No job is executed twice, each ends once, and the client hears
of it."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from broker_process import RawBroker, RawWorker

from empd import Client
from empd.queue.rows import Kind, decode_body
from empd.wire import frames
from empd.worker.outbox import Outbox

JOBS = 12
WAIT_S = 60.0
BOUNDARIES = ("received", "committed", "assigned", "sent")


class Worker:
    """A worker with four slots that counts what it executes, and restarts the broker, as its supervisor would."""

    def __init__(self, broker: RawBroker) -> None:
        self._broker = broker
        self._peer = broker.worker(slots=4)
        self._running: list[frames.AssignedJob] = []
        self._due: list[Callable[[], None]] = []
        self._outbox = Outbox(self._send, self._due.append)
        self._outbox.open = True
        self.executed: Counter[int] = Counter()
        self.killed = 0

    def run(self, stop: threading.Event) -> None:
        """Works until told to stop."""
        while not stop.is_set():
            if not self._broker.lives:
                self._restart()
            if self._peer.socket.poll(2):
                self._take(self._peer.decode(self._peer.socket.recv()))
            elif self._running:
                job = self._running.pop(0)
                self._outbox.completed((job.id, job.epoch), bytes(job.payload), None)
            while self._due:
                self._due.pop(0)()

    def _send(self, frame: frames.Frame) -> bool:
        self._peer.say(frame)
        return True

    def _restart(self) -> None:
        assert self._broker.process is not None
        assert self._broker.process.returncode == -signal.SIGKILL, self._broker.log()
        self.killed += 1
        self._outbox.open = False
        self._broker.restart()
        held = [(job.id, job.epoch) for job in self._running] + list(self._outbox.held())
        # A new connection: a hello on the old one may go to the broker that died.
        self._peer.close()
        self._peer = RawWorker(self._broker.context, self._broker.workers_endpoint, "w-0", self._peer.generation)
        offers = [frames.ServiceOffer("echo", 4)]
        self._peer.say(frames.WorkerHello(1, "w-0", self._peer.generation, "w", 4, offers, held, {}))

    def _take(self, frame: frames.Frame) -> None:
        if type(frame) is frames.WorkerWelcome:
            abandoned = set(frame.abandon)
            self._running = [job for job in self._running if (job.id, job.epoch) not in abandoned]
            self._outbox.drop(abandoned)
            self._outbox.open = True
            self._outbox.resend()
            for claim in abandoned:
                self._outbox.abandoned(claim)
        # What comes before the welcome is of the life before: the hello has not named it, so it is not held.
        elif type(frame) is frames.Assign and self._outbox.open:
            self._outbox.settle(frame.settled)
            for group in frame.groups:
                self._running += group.jobs
                self.executed.update(job.id for job in group.jobs)
        elif type(frame) is frames.Settled:
            self._outbox.settle(frame.number)


def ends(broker: RawBroker, last: int) -> Counter[int]:
    """How often the journal says of each job that it ended, up to the end of `last`."""
    reader = broker.client()
    reader.say(frames.Subscribe("", 1, kinds=[Kind.RESULTS]))
    ended: Counter[int] = Counter()
    while last not in ended:
        for _, _, kind, _, body in reader.hear(frames.Rows).rows:
            ended.update(job.id for group in decode_body(kind, body).groups for job in group.jobs)
    return ended


def go_through(broker: RawBroker) -> int:
    """A conversation of jobs while the broker dies; returns how often it died."""
    stop = threading.Event()
    worker = Worker(broker)
    with ThreadPoolExecutor(1) as pool, Client(broker.clients_endpoint) as client:
        works = pool.submit(worker.run, stop)
        try:
            handles = [client.submit("echo", number) for number in range(JOBS)]
            assert [handle.result(WAIT_S) for handle in handles] == list(range(JOBS))
            last = client.submit("echo", "last")
            assert last.result(WAIT_S) == "last"
            attempts = [handle.status().attempts for handle in (*handles, last)]
        finally:
            stop.set()
            works.result(WAIT_S)
        ids = [handle.number for handle in (*handles, last)]
    assert worker.executed == Counter(ids)
    assert attempts == [1] * len(ids), "an assignment that never arrived is no attempt"
    assert ends(broker, ids[-1]) == Counter(ids)
    return worker.killed


# The jobs are as many, and the slots as few, that these passes exist however the frames gather.
PASSES = [(Kind.SUBMITTED, 1), (Kind.SUBMITTED, 2), (Kind.ASSIGNED, 1), (Kind.RESULTS, 1), (Kind.RESULTS, 4)]


@pytest.mark.parametrize("where", BOUNDARIES)
@pytest.mark.parametrize(("kind", "nth"), PASSES)
def test_no_job_is_lost_or_runs_twice(kind: Kind, nth: int, where: str) -> None:
    broker = RawBroker()
    broker.deaths = [(where, kind, nth)]
    try:
        broker.start()
        assert go_through(broker) == 1
    finally:
        broker.close()


@pytest.mark.parametrize("where", BOUNDARIES)
def test_a_broker_that_dies_in_life_after_life(where: str) -> None:
    broker = RawBroker()
    broker.deaths = [(where, kind, 1) for kind in (Kind.SUBMITTED, Kind.RESULTS, Kind.RESULTS)]
    try:
        broker.start()
        assert go_through(broker) == 3
    finally:
        broker.close()
