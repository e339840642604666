"""A broker that does what the test says (a real ROUTER), and real worker processes connected to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from empd import lifecycle
from empd.lifecycle import ChildKind, Control, Notice
from empd.memory.board import Board
from empd.payload import Carried
from empd.wire import codec, frames

ROOT = Path(__file__).resolve().parents[2]
ENTRY = Path(__file__).with_name("worker_entry.py")
WAIT_S = 60.0

pack = msgspec.msgpack.encode
unpack = msgspec.msgpack.decode


def until(condition: Callable[[], Any], what: str = "the condition", limit_s: float = WAIT_S) -> Any:
    """Polls until the condition is true; returns its value."""
    end_s = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end_s, f"{what} did not come in {limit_s} s"
        time.sleep(0.005)


class BrokerDouble:
    """One ROUTER on the workers' endpoint. It keeps every frame that came, and settles what it is told to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.context = zmq.Context()
        self.peer = b""
        self.frames: list[frames.Frame] = []
        self.settling = True
        self.answering = True
        self.welcoming = True
        self.epoch = 1 << 32
        self.abandon: list[tuple[int, int]] = []
        self.router: zmq.Socket[bytes] | None = None
        self.telemetry = self.context.socket(zmq.PULL)
        self.telemetry.bind(f"ipc://{directory}/telemetry.sock")
        self.told: list[Any] = []
        self.bind()

    def bind(self) -> None:
        self.router = self.context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        self.router.bind(f"ipc://{self.directory}/workers.sock")

    def die(self) -> None:
        """As a SIGKILL of the broker: its sockets are gone, frames on the way with them."""
        self.router.close(linger=0)
        self.peer = b""

    def restart(self) -> None:
        self.die()
        self.bind()

    def close(self) -> None:
        self.router.close(linger=0)
        self.telemetry.close(linger=0)
        self.context.term()

    def send(self, frame: frames.Frame) -> None:
        self.router.send_multipart([self.peer, codec.encode(frame)])

    def pump(self) -> None:
        """Takes in all that has come."""
        while self.router.poll(0):
            self.peer, data = self.router.recv_multipart()
            frame = codec.decode_worker_frame(data)
            self.frames.append(frame)
            if isinstance(frame, frames.WorkerHello) and self.welcoming:
                self.send(frames.WorkerWelcome(frames.VERSION, 1, "0" * 32, self.abandon))
            if isinstance(frame, frames.StateGet) and not frame.key and self.answering:
                self.send(frames.StateValue(frame.request, 0, b""))
            if isinstance(frame, frames.Done) and self.settling:
                self.send(frames.Settled(frame.number))
        while self.telemetry.poll(0):
            self.told.append(codec.decode_telemetry(self.telemetry.recv()))

    def of(self, kind: type) -> list[Any]:
        self.pump()
        return [frame for frame in self.frames if isinstance(frame, kind)]

    def heard(self, kind: type) -> list[Any]:
        self.pump()
        return [message for message in self.told if isinstance(message, kind)]

    def wait(self, kind: type, count: int = 1) -> list[Any]:
        return until(lambda: found if len(found := self.of(kind)) >= count else None, f"{count} {kind.__name__}")

    def assign(self, service: str, payloads: list[Any], **options: Any) -> list[tuple[int, int]]:
        """Assigns jobs 1, 2, … of one group; returns their claims. `carried`: payloads are as on the wire already."""
        timeout_s = options.pop("timeout_s", 0.0)
        attempt = options.pop("attempt", 1)
        checkpoint = options.pop("checkpoint", None)
        carried = options.pop("carried", False)
        settled = options.pop("settled", 0)
        raw = msgspec.Raw(pack(frames.JobOptions(service=service, **options)))
        jobs = []
        for payload in payloads:
            self.epoch += 1
            body: Carried = payload if carried else pack(payload)
            jobs.append(frames.AssignedJob(self.epoch & 0xFFFF, self.epoch, body, attempt, checkpoint))
        self.send(frames.Assign([frames.AssignGroup(raw, timeout_s, jobs)], settled))
        return [(job.id, job.epoch) for job in jobs]

    def done(self) -> dict[tuple[int, int], Any]:
        """Results by claim, decoded where they came inline."""
        return {
            (job.id, job.epoch): unpack(job.result) if isinstance(job.result, bytes) else job.result
            for frame in self.of(frames.Done)
            for job in frame.done
        }

    def failed(self) -> dict[tuple[int, int], frames.FailedJob]:
        return {(job.id, job.epoch): job for frame in self.of(frames.Done) for job in frame.failed}

    def cancelled(self) -> set[tuple[int, int]]:
        return {tuple(claim) for frame in self.of(frames.Done) for claim in frame.cancelled}

    def roundtrip(self) -> None:
        """Returns when the worker has taken in all that was sent before."""
        before = len(self.of(frames.Abandoned))
        self.send(frames.Abandon([(0, 0)]))
        self.wait(frames.Abandoned, before + 1)

    def result(self, claim: tuple[int, int]) -> Any:
        """The result of one job, once it is there; fails at once when the job failed."""

        def look() -> Any:
            assert claim not in self.failed(), self.failed()[claim]
            return [self.done()[claim]] if claim in self.done() else None

        return until(look, f"job {claim}")[0]

    def failure(self, claim: tuple[int, int]) -> frames.FailedJob:
        return until(lambda: self.failed().get(claim), f"failure of {claim}")


class WorkerProcess:
    """A worker as a process, with the supervisor's end of its control socket and the board."""

    def __init__(self, broker: BrokerDouble, mapping: dict[str, Any], **spec: Any) -> None:
        self.broker = broker
        self.board = Board.create(4)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.records: list[Control] = []
        environment = spec.pop("environment", {})
        self.stderr_path = broker.directory / f"stderr-{time.monotonic_ns()}"
        document = {
            "dir": str(broker.directory),
            "name": "cpu-0",
            "slot": 1,
            "generation": 77,
            "control": theirs.fileno(),
            "board": self.board.fd,
            "settings": {"heartbeat_s": 0.1, **spec.pop("settings", {})},
            "mapping": mapping,
            "worker_type": "w",
            "device": None,
            **spec,
        }
        with self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(ENTRY), json.dumps(document)],
                pass_fds=(theirs.fileno(), self.board.fd),
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            )
        theirs.close()

    def ready(self) -> WorkerProcess:
        self.notice(Notice.READY)
        return self

    def notice(self, notice: Notice) -> Control:
        def look() -> Control | None:
            self.broker.pump()
            self.records += lifecycle.receive(self.control) or []
            assert self.process.poll() in (None, 0), self.stderr()
            return next((record for record in self.records if record.notice is notice), None)

        return until(look, f"record {notice.name}")

    def say(self, notice: Notice, value: int = 0) -> None:
        assert lifecycle.send(self.control, Control(notice, ChildKind.WORKER, 1, value=value))

    def ended(self) -> int:
        """The exit status, once it is there."""

        def look() -> list[int] | None:
            self.broker.pump()
            status = self.process.poll()
            return None if status is None else [status]

        return until(look, "the worker's end")[0]

    def stderr(self) -> str:
        return self.stderr_path.read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.control.close()
        self.board.close()


def simulation(**config: Any) -> dict[str, Any]:
    return {"connector": "SimulationConnector", "api_config": config}


def python(target: str, **extra: Any) -> dict[str, Any]:
    return {"connector": "PythonConnector", "api_config": {"callable": target, **extra.pop("config", {})}, **extra}
