"""A broker in a few lines, to talk to: the protocol's promises without queue, journal and workers."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import zmq

from empd.clock import host_id
from empd.errors import ProtocolError
from empd.payload import FRAME_BYTES_MAX, INLINE_BYTES_MAX, BlobRef, Carried
from empd.result import FinishedGroup, FinishedJob, JobError, JobStatus, Refusal, Results
from empd.wire import codec, frames

Work = Callable[[int, Carried], FinishedJob | None]
UNPACK = msgspec.msgpack.decode


def echo(number: int, payload: Carried) -> FinishedJob | None:
    """Every job completes at once, its result being its payload."""
    return FinishedJob(number, 0, payload, 1, 2, 1)


def failing(outcome: int, failure: str) -> Work:
    """Every job ends without a result."""
    return lambda number, _: FinishedJob(number, outcome, None, 1, 2, 1, JobError(failure, "as told", "evidence"))


class ModelBroker:
    """Sessions, frame numbers, results that stay. `work` says what becomes of a job; None: it waits for `finish`."""

    def __init__(self, work: Work = echo, spool: str = "", volatile: str = "") -> None:
        self.work = work
        self.places = (spool, volatile)
        self.inline_bytes_max = INLINE_BYTES_MAX
        self.host = host_id()
        self.connections: dict[bytes, int] = {}
        self.sessions: dict[int, dict[str, int]] = {}
        self.answers: dict[tuple[int, int], frames.Accepted] = {}
        self.finished: dict[int, tuple[bytes, FinishedJob]] = {}
        self.waiting: dict[int, tuple[bytes, Carried]] = {}
        self.keys: dict[str, int] = {}
        self.taken: dict[int, int] = defaultdict(int)
        self.refuse: dict[Any, Refusal] = {}
        self.forgotten: set[int] = set()
        self.seen: list[Any] = []
        self.last_session = 0
        self.successors: dict[int, int] = {}

    def receive(self, peer: bytes, data: bytes) -> list[bytes]:
        """The answers to one frame."""
        try:
            frame = codec.decode_client_frame(data)
        except ProtocolError as error:
            return [codec.encode(frames.Error(0, "invalid_input", str(error)))]
        self.seen.append(frame)
        if isinstance(frame, frames.ClientHello):
            return [codec.encode(self._hello(peer, frame))]
        if peer not in self.connections:
            return [codec.encode(frames.Error(getattr(frame, "request", 0), "refused", "say ClientHello first"))]
        session = self.connections[peer]
        if isinstance(frame, frames.Submit):
            return [codec.encode(answer) for answer in self._submit(session, frame)]
        if isinstance(frame, frames.Ask):
            return [codec.encode(answer) for answer in self._ask(session, frame)]
        if isinstance(frame, frames.Cancel | frames.Retry):
            return [codec.encode(frames.Reply(frame.request, self._cancel(frame.ids)))]
        if isinstance(frame, frames.Status):
            return [codec.encode(frames.Reply(frame.request, {"waiting": len(self.waiting)}))]
        return []

    def restart(self, wipe: bool = False) -> None:
        """All connections are gone; with `wipe` the state too."""
        self.connections.clear()
        if wipe:
            for state in (self.sessions, self.answers, self.finished, self.waiting, self.keys):
                state.clear()

    def finish(self, count: int = 1 << 60) -> list[tuple[int, bytes]]:
        """Completes waiting jobs; (session, frame) to be sent to whoever holds the session."""
        sent = []
        for number in list(self.waiting)[:count]:
            options, payload = self.waiting.pop(number)
            self.finished[number] = (options, FinishedJob(number, 0, payload, 1, 2, 1))
            sent.append((number >> 32, codec.encode(self._results(number >> 32, [number]))))
        return sent

    def _hello(self, peer: bytes, hello: frames.ClientHello) -> frames.Welcome:
        session = hello.session
        if hello.renew:
            self.successors.setdefault(session, 0)
        if session in self.successors:
            session = self.successors[session]
        if session not in self.sessions or (session == hello.session and hello.token != b"token%d" % session):
            self.last_session += 1
            session = self.last_session
            self.sessions[session] = {"frame": 0, "job": 1}
            if hello.session in self.successors:
                self.successors[hello.session] = session
        self.connections = {known: number for known, number in self.connections.items() if number != session}
        self.connections[peer] = session
        state = self.sessions[session]
        limits = (FRAME_BYTES_MAX, self.inline_bytes_max, self.host, *self.places)
        return frames.Welcome(
            frames.VERSION, session, b"token%d" % session, "00", 1, state["frame"], state["job"], *limits
        )

    def _submit(self, session: int, submit: frames.Submit) -> Iterable[Any]:
        state = self.sessions[session]
        if (session, submit.number) in self.answers:
            return [self.answers[session, submit.number]]
        assert submit.number > state["frame"]
        assert submit.first >= state["job"]
        accepted = frames.Accepted(submit.number, [], [])
        keys = [key for group in submit.groups for key in group.keys or [] if key]
        assert len(keys) == len(set(keys)), "a key stands twice in one frame"
        index, done = 0, []
        for group in submit.groups:
            for payload, key in zip(group.payloads, group.keys or [""] * len(group.payloads), strict=True):
                number = session << 32 | submit.first + index
                if self._take(number, index, key, bytes(group.options), payload, accepted):
                    done.append(number)
                index += 1
        state["frame"], state["job"] = submit.number, submit.first + index
        self.answers[session, submit.number] = accepted
        return [accepted, self._results(session, done)] if done else [accepted]

    def _take(
        self, number: int, index: int, key: str, options: bytes, payload: Carried, accepted: frames.Accepted
    ) -> bool:
        """Takes one job; True when it is done at once."""
        refusal = self.refuse.get(payload if isinstance(payload, BlobRef) else bytes(payload))
        if refusal is not None:
            accepted.refused.append(Refusal(index, refusal.failure, refusal.reason, refusal.retry_after_s))
            return False
        if key and key in self.keys:
            accepted.existing.append((index, self.keys[key]))
            return False
        if key:
            self.keys[key] = number
        self.taken[number] += 1
        ended = self.work(number, payload)
        if ended is None:
            self.waiting[number] = (options, payload)
        else:
            self.finished[number] = (options, ended)
        return ended is not None

    def _results(self, session: int, numbers: list[int]) -> Results:
        groups: dict[bytes, list[FinishedJob]] = {}
        for number in numbers:
            options, job = self.finished[number]
            groups.setdefault(options, []).append(job)
        return Results(session, "cpu0", 5, [FinishedGroup(msgspec.Raw(o), jobs) for o, jobs in groups.items()])

    def _ask(self, session: int, ask: frames.Ask) -> Iterable[Any]:
        assert len(ask.ids) <= 5_000
        known = [number for number in ask.ids if number in self.finished and number not in self.forgotten]
        if known:
            yield self._results(session, known)
        left = [number for number in ask.ids if number not in known]
        if ask.ended_only:
            left = [number for number in left if number not in self.waiting]
        states = ["waiting" if number in self.waiting else "unknown" for number in left]
        yield frames.States(ask.request, [JobStatus(number, state) for number, state in zip(left, states, strict=True)])

    def _cancel(self, ids: list[int]) -> dict[str, Any]:
        stopped = [number for number in ids if number in self.waiting]
        for number in stopped:
            options, _ = self.waiting.pop(number)
            self.finished[number] = (
                options,
                FinishedJob(number, 2, None, 1, 0, 0, JobError("cancelled", "by request")),
            )
        return {"cancelled": stopped, "cancelling": [], "unknown": [number for number in ids if number not in stopped]}


class RouterDouble:
    """The model behind a real ROUTER, in a thread. `stop` and `start` are its death and its next life."""

    def __init__(self, endpoint: str, model: ModelBroker) -> None:
        self.endpoint, self.model = endpoint, model
        self.lock = threading.Lock()
        self.raw: list[bytes] = []  # sent to every peer as it is
        self.deaf = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._running = False

    def start(self) -> None:
        """Binds and serves."""
        if self.endpoint.startswith("ipc://"):
            Path(self.endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
        bound = threading.Event()
        self._running = True
        self._thread = threading.Thread(target=self._serve, args=(bound,), daemon=True)
        self._thread.start()
        assert bound.wait(60)

    def stop(self, wipe: bool = False) -> None:
        """Closes the socket; what was not read is lost."""
        self._running = False
        os.eventfd_write(self._wake, 1)
        assert self._thread is not None
        self._thread.join(60)
        self.model.restart(wipe)

    def finish(self, count: int = 1 << 60) -> None:
        """Completes waiting jobs and tells their sessions."""
        with self.lock:
            self._finish += count
        os.eventfd_write(self._wake, 1)

    def say(self, data: bytes) -> None:
        """Sends bytes, whatever they are, to every peer."""
        with self.lock:
            self.raw.append(data)
        os.eventfd_write(self._wake, 1)

    _finish = 0

    def _serve(self, bound: threading.Event) -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.bind(self.endpoint)
            bound.set()
            poller = zmq.Poller()
            poller.register(socket, zmq.POLLIN)
            poller.register(self._wake, zmq.POLLIN)
            while self._running:
                ready = dict(poller.poll(1000))
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                with self.lock:
                    self._told(socket)
                    self._drain(socket)

    def _told(self, socket: zmq.Socket[bytes]) -> None:
        for data in self.raw:
            for peer in self.model.connections:
                socket.send_multipart([peer, data])
        self.raw.clear()
        if self._finish:
            peers = {session: peer for peer, session in self.model.connections.items()}
            for session, data in self.model.finish(self._finish):
                if session in peers:
                    socket.send_multipart([peers[session], data])
            self._finish = 0

    def _drain(self, socket: zmq.Socket[bytes]) -> None:
        while socket.getsockopt(zmq.EVENTS) & zmq.POLLIN and self._running:
            peer, data = socket.recv_multipart()
            if not self.deaf:
                for answer in self.model.receive(peer, data):
                    socket.send_multipart([peer, answer])


@contextmanager
def serving(folder: Path, model: ModelBroker) -> Any:
    """A running double on a socket in `folder`."""
    double = RouterDouble(f"ipc://{folder}/empd.sock", model)
    double.start()
    try:
        yield double
    finally:
        double.stop()
