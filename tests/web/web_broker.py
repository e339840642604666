"""A scripted broker: a ROUTER in a thread that speaks the client's side of the protocol and keeps a journal list.

Jobs of service `echo` end at once with their payload; `hold` stay assigned until `finish`; `refuse` are refused.
"""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import zmq

from empd import clock
from empd.job import JobOptions, Outcome
from empd.queue import rows
from empd.queue.rows import Kind
from empd.result import FinishedGroup, FinishedJob, JobError, JobStatus, Refusal, Results
from empd.wire import codec, frames

INSTANCE = "ab" * 16


class BrokerDouble:
    """Start it with `start`; every public method may be called from the test's thread."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.lock = threading.RLock()
        self.rows: list[tuple[int, int, int, int, bytes]] = []
        self.first_seq = 1
        self.jobs: dict[int, JobStatus] = {}
        self.ended: dict[int, tuple[bytes, FinishedJob, str, int]] = {}
        self.forgotten: set[int] = set()
        self.options: dict[int, bytes] = {}
        self.payloads: dict[int, Any] = {}
        self.keys: dict[int, str] = {}
        self.acked: dict[str, int] = {}
        self.subscribed: list[frames.Subscribe] = []
        self.problems: list[str] = []
        self.instance = INSTANCE
        self._sessions = 0
        self._homes: dict[bytes, int] = {}
        self._followers: dict[tuple[bytes, str], tuple[int, frozenset[int]]] = {}
        self._outbox: list[tuple[bytes, Any]] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Binds and serves."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._serve, name="broker-double")
        self._thread.start()

    def stop(self) -> None:
        """Stops serving; the journal and the jobs stay, as after a crash."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        self._homes.clear()
        self._followers.clear()

    # --- what a test does ----------------------------------------------------------------------------------------

    def add_row(self, kind: Kind, body: Any, origin: int = 0) -> int:
        """Journals a row; returns its number."""
        with self.lock:
            seq = self.rows[-1][0] + 1 if self.rows else self.first_seq
            data = body if isinstance(body, bytes) else codec.encode(body)
            self.rows.append((seq, clock.now().wall_ns, int(kind), origin, data))
            return seq

    def finish(
        self, number: int, outcome: Outcome = Outcome.COMPLETED, result: Any = b"\xc0", error: JobError | None = None
    ) -> int:
        """Ends a job; returns the row's number."""
        with self.lock:
            self.jobs.pop(number, None)
            options = self.options.setdefault(number, codec.encode(JobOptions(service="hold")))
            at_ns = clock.now().wall_ns
            job = FinishedJob(number, outcome, result, at_ns - 3_000_000_000, at_ns - 1_000_000_000, 1, error)
            self.ended[number] = (options, job, "gpu0", at_ns)
            results = self._results(number)
            seq = self.add_row(Kind.RESULTS, results)
            for identity, session in self._homes.items():
                if session == number >> 32:
                    self._outbox.append((identity, results))
            return seq

    def forget(self, number: int) -> None:
        """The broker no longer knows the job; history may."""
        with self.lock:
            self.ended.pop(number, None)
            self.jobs.pop(number, None)

    # --- the thread ----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            router.setsockopt(zmq.LINGER, 0)
            router.bind(self.endpoint)
            while not self._stopping.is_set():
                if router.poll(5):
                    identity, data = router.recv_multipart()
                    with self.lock:
                        self._take(identity, codec.decode_client_frame(data))
                with self.lock:
                    self._feed()
                    outbox, self._outbox = self._outbox, []
                for target, frame in outbox:
                    router.send_multipart([target, codec.encode(frame)])

    def _send(self, identity: bytes, frame: Any) -> None:
        self._outbox.append((identity, frame))

    def _take(self, identity: bytes, frame: Any) -> None:
        handler = {
            frames.ClientHello: self._hello,
            frames.Submit: self._submit,
            frames.Ask: self._ask,
            frames.Status: self._status,
            frames.List: self._list,
            frames.Cancel: self._cancel,
            frames.Subscribe: self._subscribe,
            frames.CursorAck: lambda _, ack: self.acked.__setitem__(ack.consumer, ack.seq),
            frames.Bye: lambda gone, _: self._homes.pop(gone, None),
        }[type(frame)]
        if type(frame) is not frames.ClientHello and identity not in self._homes:
            self._send(identity, frames.Error(0, "refused", "hello first"))
            return
        handler(identity, frame)

    def _hello(self, identity: bytes, frame: frames.ClientHello) -> None:
        if not frame.session:
            self._sessions += 1
        session = frame.session or self._sessions
        self._homes[identity] = session
        welcome = frames.Welcome(
            frames.VERSION,
            session,
            b"token",
            self.instance,
            1,
            0,
            1,
            1 << 20,
            64 * 1024,
            "host",
            "/nowhere",
            "/nowhere",
        )
        self._send(identity, welcome)

    def _submit(self, identity: bytes, frame: frames.Submit) -> None:
        session = self._homes[identity]
        refused: list[Refusal] = []
        ending: list[tuple[int, bytes]] = []
        index = 0
        for group in frame.groups:
            service = codec.decode_options(bytes(group.options)).service
            for place, payload in enumerate(group.payloads):
                number = session << 32 | frame.first + index
                self.options[number] = bytes(group.options)
                self.payloads[number] = payload
                self.keys[number] = group.keys[place] if group.keys else ""
                if service == "refuse":
                    refused.append(Refusal(index, "unavailable", "the queue is full", 7.0))
                elif service == "unmatchable":
                    refused.append(Refusal(index, "unmatchable", "no configured worker runs it"))
                elif service == "echo":
                    ending.append((number, payload))
                else:
                    self.jobs[number] = JobStatus(
                        number, "assigned", service, 50, 1_700_000_000_000_000_000, worker="gpu0"
                    )
                index += 1
        self.add_row(Kind.SUBMITTED, frame, session)
        self._send(identity, frames.Accepted(frame.number, refused))
        for number, payload in ending:
            self.add_row(Kind.ASSIGNED, rows.Assigned("gpu0", 1, 5, [number]))
            self.finish(number, result=payload)

    def _results(self, number: int) -> Results:
        options, job, worker, at_ns = self.ended[number]
        return Results(number >> 32, worker, at_ns, [FinishedGroup(msgspec.Raw(options), [job])])

    def _ask(self, identity: bytes, frame: frames.Ask) -> None:
        statuses = []
        for number in frame.ids:
            if number in self.ended:
                self._send(identity, self._results(number))
            else:
                statuses.append(self.jobs.get(number, JobStatus(number, "unknown")))
        self._send(identity, frames.States(frame.request, statuses))

    def _status(self, identity: bytes, frame: frames.Status) -> None:
        last_seq = self.rows[-1][0] if self.rows else self.first_seq - 1
        body = {
            "boot": 1,
            "problems": self.problems,
            "journal": {"first_seq": self.first_seq, "last_seq": last_seq},
            "workers": [{"name": "gpu0", "connected": True, "slots": 1, "jobs": []}],
            "services": {"echo": {"waiting": 3, "oldest_age_s": 1.5, "workers": 1, "slots": 1, "reasons": []}},
        }
        self._send(identity, frames.Reply(frame.request, body))

    def _list(self, identity: bytes, frame: frames.List) -> None:
        wanted = frame.filter
        found = [
            job
            for number, job in sorted(self.jobs.items())
            if number > wanted.after
            and wanted.service in (None, job.service)
            and (wanted.states is None or job.state in wanted.states)
        ]
        page = found[: wanted.limit]
        following = {"cursor": 1, "after": page[-1].id} if len(found) > len(page) else {"cursor": None}
        body = {"jobs": [msgspec.structs.asdict(job) for job in page], **following}
        self._send(identity, frames.Reply(frame.request, body))

    def _cancel(self, identity: bytes, frame: frames.Cancel) -> None:
        named = [number for number in frame.ids if number in self.jobs]
        for number in named:
            self.jobs[number] = msgspec.structs.replace(self.jobs[number], state="cancelling")
        self._send(identity, frames.Reply(frame.request, {"jobs": named}))

    def _subscribe(self, identity: bytes, frame: frames.Subscribe) -> None:
        self.subscribed.append(frame)
        begin = frame.from_seq
        if begin < self.first_seq:
            self._send(identity, frames.Reset(frame.consumer, self.first_seq))
            begin = self.first_seq
        self._followers[identity, frame.consumer] = (begin, frozenset(frame.kinds))

    def _feed(self) -> None:
        for (identity, consumer), (begin, kinds) in list(self._followers.items()):
            coming = [row for row in self.rows if row[0] >= begin]
            if not coming:
                continue
            self._followers[identity, consumer] = (coming[-1][0] + 1, kinds)
            wanted = [row for row in coming if not kinds or row[2] in kinds]
            if wanted:
                self._send(identity, frames.Rows(consumer, wanted))
