"""The broker alone, in a process of its own; the test plays its supervisor, its workers and its clients with bare
sockets and frames."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import zmq

from empd import lifecycle
from empd.broker.ledger import Ledger
from empd.broker.outbox import Outbox
from empd.broker.peers import Router
from empd.broker.process import main
from empd.clock import Instant
from empd.job import JobFilter, JobOptions
from empd.lifecycle import Child, ChildKind, Control, Exit, Notice
from empd.mapping import Mapping
from empd.memory.board import Board
from empd.result import DoneJob, FinishedJob
from empd.settings import Settings
from empd.store.journal import Row
from empd.wire import codec, frames

ROOT = Path(__file__).parent.parent.parent
WAIT_S = 60.0
SUPERVISOR = 77 << 32
MAPPING = {
    "workers": {
        "w": {"services": ["echo", "other"], "instances": 2, "max_concurrent_jobs": 64},
        "picky": {"services": ["narrow"], "instances": 1, "capabilities": {"model": "big", "cards": 2}},
    },
    "services": {name: {"connector": "SimulationConnector"} for name in ("echo", "other", "narrow")},
}


def options(service: str = "echo", **said: Any) -> msgspec.Raw:
    """Options on the wire."""
    return msgspec.Raw(codec.encode(JobOptions(service=service, **said)))


def group(*payloads: Any, keys: list[str] | None = None, **said: Any) -> frames.JobGroup:
    """A group of jobs with the same options."""
    return frames.JobGroup(options(**said), list(payloads), keys)


class Peer:
    """A bare DEALER socket; what it hears and nobody has asked for yet waits in `heard`."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, identity: bytes = b"", **sockopts: int) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        for name, value in sockopts.items():
            self.socket.setsockopt(getattr(zmq, name), value)
        if identity:
            self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.connect(endpoint)
        self.heard: list[Any] = []
        self.decode: Any = codec.decode_for_client

    def say(self, *said: Any) -> None:
        """Sends frames, or bytes as they are."""
        for frame in said:
            self.socket.send(frame if isinstance(frame, bytes) else codec.encode(frame))

    def hear(self, kind: type, limit_s: float = WAIT_S, **fields: Any) -> Any:
        """The next frame of this kind with these fields."""
        deadline_s = time.monotonic() + limit_s
        while True:
            for index, frame in enumerate(self.heard):
                if type(frame) is kind and all(getattr(frame, name) == value for name, value in fields.items()):
                    return self.heard.pop(index)
            left_ms = int((deadline_s - time.monotonic()) * 1000)
            assert left_ms > 0, f"heard no {kind.__name__} {fields} in {limit_s} s, but {str(self.heard)[:2000]}"
            if self.socket.poll(left_ms):
                self.heard.append(self.decode(self.socket.recv()))

    def take(self) -> list[Any]:
        """All that has come."""
        with contextlib.suppress(zmq.Again):
            while True:
                self.heard.append(self.decode(self.socket.recv(zmq.NOBLOCK)))
        taken, self.heard = self.heard, []
        return taken

    def close(self) -> None:
        self.socket.close(0)


class RawClient(Peer):
    """A client that says only what it is told to."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, **sockopts: int) -> None:
        super().__init__(context, endpoint, **sockopts)
        self._requests = itertools.count(1)
        self.welcome: frames.Welcome | None = None
        self.number = 0
        self.next_job = 1

    def hello(self, session: int = 0, token: bytes = b"") -> frames.Welcome:
        self.say(frames.ClientHello(frames.VERSION, session, token))
        welcome: frames.Welcome = self.hear(frames.Welcome)
        self.welcome, self.number, self.next_job = welcome, welcome.frame_number, welcome.next_job
        return welcome

    def submit(self, *groups: frames.JobGroup) -> list[int]:
        """Sends a Submit frame; returns its jobs' ids."""
        assert self.welcome is not None
        count = sum(len(one.payloads) for one in groups)
        self.number += 1
        first, self.next_job = self.next_job, self.next_job + count
        self.say(frames.Submit(self.number, first, list(groups)))
        return [self.welcome.session << 32 | first + i for i in range(count)]

    def accepted(self, *groups: frames.JobGroup) -> list[int]:
        """Submits; returns the ids when all are accepted."""
        ids = self.submit(*groups)
        answer = self.hear(frames.Accepted, number=self.number)
        assert not answer.refused, answer
        return ids

    def ask(self, verb: Any, *said: Any, answer: type = frames.Reply, **named: Any) -> Any:
        """Sends a numbered request; returns the body of its reply."""
        request = next(self._requests)
        self.say(verb(request, *said, **named))
        frame = self.hear(answer, request=request)
        return frame.body if answer is frames.Reply else frame

    def result(self, job_id: int, limit_s: float = WAIT_S) -> FinishedJob:
        """Waits for the end of a job; fails when another frame speaks of it a second time."""
        deadline_s = time.monotonic() + limit_s
        while True:
            for frame in self.heard:
                if type(frame) is frames.Results:
                    for ended in frame.groups:
                        for index, job in enumerate(ended.jobs):
                            if job.id == job_id:
                                return ended.jobs.pop(index)
            left_ms = int((deadline_s - time.monotonic()) * 1000)
            assert left_ms > 0, f"no result of {job_id:x} in {limit_s} s, but {str(self.heard)[:2000]}"
            if self.socket.poll(left_ms):
                self.heard.append(self.decode(self.socket.recv()))

    def told(self) -> list[int]:
        """Jobs whose end has been told and not been waited for."""
        results = [frame for frame in self.take() if type(frame) is frames.Results]
        return [job.id for frame in results for ended in frame.groups for job in ended.jobs]

    def state_of(self, job_id: int) -> str:
        """The state the broker names."""
        states: frames.States = self.ask(frames.Ask, [job_id], answer=frames.States)
        return states.jobs[0].state if states.jobs else "ended"


class RawWorker(Peer):
    """A worker that says only what it is told to."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, name: str, generation: int) -> None:
        super().__init__(context, endpoint)
        self.decode = codec.decode_for_worker
        self.name = name
        self.generation = generation
        self.assigned: list[frames.AssignedJob] = []
        self._done = 0

    def hello(
        self,
        slots: int = 1,
        services: tuple[str, ...] = ("echo",),
        held: list[tuple[int, int]] | None = None,
        capabilities: dict[str, Any] | None = None,
    ) -> frames.WorkerWelcome:
        offers = [frames.ServiceOffer(service, slots) for service in services]
        self.say(
            frames.WorkerHello(1, self.name, self.generation, "w", slots, offers, held or [], capabilities or {}, pid=1)
        )
        return self.hear(frames.WorkerWelcome)

    def claim(self) -> frames.AssignedJob:
        """The next assigned job."""
        while not self.assigned:
            frame: frames.Assign = self.hear(frames.Assign)
            self.assigned += [job for each in frame.groups for job in each.jobs]
        return self.assigned.pop(0)

    def complete(self, *jobs: frames.AssignedJob, result: bytes = b"\xc0", settle: bool = True) -> None:
        """Says that these completed."""
        self.report([DoneJob(job.id, job.epoch, result) for job in jobs], settle=settle)

    def report(
        self,
        done: list[DoneJob],
        failed: list[frames.FailedJob] | None = None,
        cancelled: list[tuple[int, int]] | None = None,
        settle: bool = True,
    ) -> None:
        """A Done frame under the next number."""
        self._done += 1
        self.say(frames.Done(self._done, done, failed or [], cancelled or []))
        if settle:
            self.settled()

    def settled(self) -> str:
        """Waits until its last Done is settled; returns the kind of frame that says so."""
        deadline_s = time.monotonic() + WAIT_S
        while True:
            for frame in self.heard:
                if self._done in (getattr(frame, "settled", 0), getattr(frame, "number", 0)):
                    return type(frame).__name__
            left_ms = int((deadline_s - time.monotonic()) * 1000)
            assert left_ms > 0, f"Done {self._done} is not settled, but heard: {str(self.heard)[:2000]}"
            if self.socket.poll(left_ms):
                self.heard.append(self.decode(self.socket.recv()))


class RawBroker:
    """One broker's directories, its process, and the supervisor's end of its socketpair."""

    def __init__(self, **settings: Any) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="empd-", dir="/tmp"))
        self.runtime_dir = self.home / "run"
        self.state_dir = self.home / "state"
        for path in (self.runtime_dir, self.state_dir):
            path.mkdir()
        self.settings = {"durability": "os", "disk_free_min_bytes": 0, "log_level": "warning", **settings}
        self.clients_endpoint = f"ipc://{self.runtime_dir}/empd.sock"
        self.workers_endpoint = f"ipc://{self.runtime_dir}/workers.sock"
        self.context: zmq.Context[Any] = zmq.Context()
        self.board = Board.create(4)
        self.process: subprocess.Popen[bytes] | None = None
        self.control: socket.socket | None = None
        self.generations = itertools.count(SUPERVISOR + 1)
        self.living: dict[int, int] = {}
        self.deaths: list[tuple[str, int, int]] = []
        """How the next lives end, each as `mortal` takes it; a life that finds none goes on."""
        self.worker_types = list(MAPPING["workers"])
        self._peers: list[Peer] = []

    def start(self, *, settle: bool = True) -> None:
        """Starts the broker and (`settle`) tells it who lives; returns when it serves."""
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        said = json.dumps(
            {
                "state_dir": str(self.state_dir),
                "runtime_dir": str(self.runtime_dir),
                "control": theirs.fileno(),
                "board": self.board.fd,
                "generation": next(self.generations),
                "worker_types": self.worker_types,
                "dies": self.deaths.pop(0) if self.deaths else None,
                **self.settings,
            }
        )
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, said],
                pass_fds=(theirs.fileno(), self.board.fd),
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        theirs.close()
        if settle:
            self.settle()
        self.control.settimeout(WAIT_S)
        assert Control.unpack(self.control.recv(256)).notice is Notice.READY, self.log()

    def settle(self) -> None:
        """Tells the broker who lives."""
        assert self.control is not None
        for generation, slot in self.living.items():
            lifecycle.send(self.control, Control(Notice.UP, ChildKind.WORKER, slot, generation, pid=1))
        lifecycle.send(self.control, Control(Notice.PICTURE_END))

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        assert self.control is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(WAIT_S)
        self.control.close()

    def restart(self) -> None:
        """kill -9 and a new one on the same journal."""
        self.kill()
        self.start()

    @property
    def lives(self) -> bool:
        assert self.process is not None
        return self.process.poll() is None

    def log(self) -> str:
        return (self.home / "log").read_text()

    def client(self, *, hello: bool = True, **sockopts: int) -> RawClient:
        """A client, welcomed."""
        peer = RawClient(self.context, self.clients_endpoint, **sockopts)
        self._peers.append(peer)
        if hello:
            peer.hello()
        return peer

    def named(self, name: str) -> RawWorker:
        """A worker that the supervisor has named, and that has said nothing yet."""
        assert self.control is not None
        generation = next(self.generations)
        slot = len(self.living) % 3 + 1
        self.living[generation] = slot
        lifecycle.send(self.control, Control(Notice.UP, ChildKind.WORKER, slot, generation, pid=1))
        peer = RawWorker(self.context, self.workers_endpoint, name, generation)
        self._peers.append(peer)
        return peer

    def worker(self, name: str = "w-0", **hello: Any) -> RawWorker:
        """A worker that the supervisor has named, welcomed."""
        peer = self.named(name)
        peer.hello(**hello)
        return peer

    def gone(self, worker: RawWorker, how: Exit = Exit.CRASHED) -> None:
        """The supervisor says that a worker is dead."""
        self._gone(worker.generation, how)

    def _gone(self, generation: int, how: Exit) -> None:
        assert self.control is not None
        self.living.pop(generation)
        lifecycle.send(self.control, Control(Notice.GONE, ChildKind.WORKER, 1, generation, cause=how, status=9))

    def clear(self) -> None:
        """Ends every worker and cancels every job, so that the next test finds an empty broker."""
        for peer in self._peers:
            peer.close()
        self._peers.clear()
        for generation in list(self.living):
            self._gone(generation, Exit.CRASHED)
        sweeper = self.client()
        deadline_s = time.monotonic() + WAIT_S
        while left := sweeper.ask(frames.Status)["jobs"]["unfinished"]:
            assert time.monotonic() < deadline_s, f"{left} jobs do not end"
            sweeper.ask(frames.Cancel, [], JobFilter())

    def heard_kill(self) -> Control:
        """The next KILL that the broker asks the supervisor for."""
        assert self.control is not None
        while (record := Control.unpack(self.control.recv(256))).notice is not Notice.KILL:
            pass
        return record

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.context.destroy(linger=0)
        self.board.close()
        for path in (self.home, Settings(state_dir=self.state_dir, runtime_dir=self.runtime_dir).volatile_dir):
            shutil.rmtree(path, ignore_errors=True)


def mortal(where: str, kind: int, nth: int) -> None:
    """Makes this broker kill itself in the `nth` pass that commits a fact of `kind`: when it has `received` what caused
    it, when it has `committed`, or when the workers' (`assigned`) or all (`sent`) of its frames have reached them."""
    boxes: list[Outbox] = []
    flushes_left = {"assigned": 1, "sent": 2}.get(where, 0)
    passes, fatal = 0, False
    begin, commit, flush = Outbox.__init__, Ledger.commit, Outbox.flush

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def begin_known(box: Outbox, router: Router) -> None:
        begin(box, router)
        boxes.append(box)

    def commit_or_die(ledger: Ledger, now: Instant) -> list[Row]:
        nonlocal passes, fatal
        if any(fact.kind == kind for _, _, fact in ledger._queue.pending):
            passes += 1
            fatal = passes == nth
        if fatal and where == "received":
            die()
        rows = commit(ledger, now)
        if fatal and where == "committed":
            die()
        return rows

    def flush_and_die(box: Outbox) -> set[bytes]:
        nonlocal flushes_left
        missed = flush(box)
        if fatal:
            flushes_left -= 1
            if flushes_left == 0:
                # Ends when the transport has written all that was sent.
                boxes[0]._router.socket.context.destroy(linger=10_000)
                die()
        return missed

    Outbox.__init__, Ledger.commit, Outbox.flush = begin_known, commit_or_die, flush_and_die  # type: ignore[method-assign]


def serve(said: dict[str, Any]) -> int:
    """The broker, entered as the supervisor would."""
    control = socket.socket(fileno=said.pop("control"))
    control.setblocking(False)
    board_fd, generation = said.pop("board"), said.pop("generation")
    worker_types = said.pop("worker_types")
    if dies := said.pop("dies"):
        mortal(*dies)
    paths = {name: Path(said.pop(name)) for name in ("state_dir", "runtime_dir")}
    settings = Settings(**paths, **said)
    workers = {name: MAPPING["workers"][name] for name in worker_types}
    mapping = Mapping.from_dict({**MAPPING, "workers": workers}, {})
    return main(Child(ChildKind.BROKER, "broker", 0, generation, control, board_fd, 2, settings, mapping))


if __name__ == "__main__":
    sys.exit(serve(json.loads(sys.argv[1])))
