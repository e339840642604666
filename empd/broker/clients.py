"""The clients' side of the broker: sessions, submissions, questions, operators' verbs."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from empd.broker.answers import Answers
from empd.broker.blobs import BlobKeeper
from empd.broker.ledger import Ledger
from empd.broker.outbox import Outbox
from empd.broker.questions import Questions
from empd.broker.stream import Stream
from empd.clock import Instant
from empd.errors import FailureClass, ProtocolError
from empd.job import RENEWABLE_FROM, JobFilter, State, Submit
from empd.payload import FRAME_BYTES_MAX, INLINE_BYTES_MAX, BlobRef
from empd.queue import requests
from empd.queue.admission import Outside
from empd.queue.claims import EVERYONE
from empd.queue.machine import Queue
from empd.queue.state import Session
from empd.result import Results
from empd.wire import frames
from empd.wire.codec import decode_client_frame

BULK_MAX = 50_000
"""Jobs that one Cancel or Retry by filter applies to, so that its answer fits into a frame and its pass does not take
long. The answer then says where the next one goes on."""
SUBMIT_FRAME_BYTES_MAX = FRAME_BYTES_MAX
_HELLO_FIRST = "say ClientHello first"


class Host(msgspec.Struct, frozen=True):
    """What a client on the same host can use: where blobs lie, and how it knows that it is the same host."""

    id: str
    spool_dir: str
    volatile_dir: str
    sync_blobs: bool


class Means(NamedTuple):
    """What the desk works with."""

    queue: Queue
    ledger: Ledger
    outbox: Outbox
    stream: Stream
    blobs: BlobKeeper


class ClientDesk:
    """Handles every frame that clients send. Answers go to the outbox."""

    def __init__(self, means: Means, host: Host) -> None:
        self._queue, self._ledger, self._outbox, self._stream, self._blobs = means
        self._host = host
        self._questions = Questions(Answers(self._queue, self._ledger), self._outbox)
        self._sessions: dict[bytes, Session] = {}
        self._identities: dict[int, bytes] = {}
        self._successors: dict[int, int] = {}
        self.status: Callable[[], dict[str, Any]] = dict
        self.operate: Callable[[str], None] = lambda verb: None
        self.bad_frames = 0
        self._handlers: dict[type, Callable[[bytes, Session, Any, Instant], None]] = {
            frames.Ask: self._ask,
            frames.Cancel: self._cancel,
            frames.Retry: self._retry,
            frames.List: self._list,
            frames.Status: self._status,
            frames.Operate: self._operate,
            frames.Subscribe: self._subscribe,
            frames.CursorAck: self._cursor_ack,
            frames.Bye: self._bye,
        }

    def handle(self, identity: bytes, data: bytes, now: Instant) -> None:
        """One frame, whatever its bytes are."""
        try:
            frame = decode_client_frame(data)
        except ProtocolError as error:
            self._bad(identity, 0, str(error))
            return
        if type(frame) is frames.ClientHello:
            self._hello(identity, frame, now)
            return
        session = self._sessions.get(identity)
        if session is None or self._queue.state.sessions.get(session.number) is not session:
            self.lost((identity,))  # never greeted, or its session is forgotten
            self._error(identity, getattr(frame, "request", 0), FailureClass.REFUSED, _HELLO_FIRST)
        elif type(frame) is frames.Submit:
            self._submit(identity, session, frame, data, now)
        else:
            try:
                self._handlers[type(frame)](identity, session, frame, now)
            except ValueError as error:
                self._error(identity, getattr(frame, "request", 0), FailureClass.INVALID_INPUT, str(error))

    # --- sessions ---

    def _hello(self, identity: bytes, frame: frames.ClientHello, now: Instant) -> None:
        if frame.version != frames.VERSION:
            self._bad(identity, 0, f"protocol {frame.version} is not spoken here; this is {frames.VERSION}")
            return
        session = self._queue.state.sessions.get(frame.session)
        if session is None or not secrets.compare_digest(session.token, frame.token):
            session = self._queue.open_session(secrets.token_bytes(16), frame.name[:64], now)
        elif session.number in self._successors or (frame.renew and session.next_job >= RENEWABLE_FROM):
            session = self._successor(session, frame, now)
        session.seen_mono_ns = now.mono_ns
        self._questions.forget(identity)  # it asks anew, as every connection does
        self._sessions.pop(self._identities.get(session.number, b""), None)
        self._sessions[identity] = session
        self._identities[session.number] = identity
        self._outbox.put(
            identity,
            frames.Welcome(
                version=frames.VERSION,
                session=session.number,
                token=session.token,
                instance=self._ledger.journal.instance,
                boot=self._queue.state.boot,
                frame_number=session.frame_number,
                next_job=session.next_job,
                frame_bytes_max=SUBMIT_FRAME_BYTES_MAX,
                inline_bytes_max=INLINE_BYTES_MAX,
                host=self._host.id,
                spool_dir=self._host.spool_dir,
                volatile_dir=self._host.volatile_dir,
                sync_blobs=self._host.sync_blobs,
            ),
        )

    def _successor(self, session: Session, frame: frames.ClientHello, now: Instant) -> Session:
        """The session that takes the place of a used up one: the same for every Hello that still names the old one,
        since more than one may be on its way. What ends of the old one goes to the connection that it had."""
        successor = self._queue.state.sessions.get(self._successors.get(session.number, 0))
        if successor is None:
            successor = self._queue.open_session(secrets.token_bytes(16), frame.name[:64], now)
            self._successors[session.number] = successor.number
        return successor

    def _bye(self, identity: bytes, session: Session, frame: frames.Bye, now: Instant) -> None:
        self.lost((identity,))
        self._stream.forget(identity)
        if frame.forget:
            self._queue.apply(requests.leave(self._queue.state, session.number), now)

    def keep_sessions(self, now: Instant) -> None:
        """Sessions of clients that are there outlast any silence: a word to those that were silent for long tells
        who is there, since it cannot be sent to the others."""
        for identity, session in self._sessions.items():
            if now.mono_ns - session.seen_mono_ns > self._queue.policy.session_keep_ns // 2:
                session.seen_mono_ns = now.mono_ns
                self._outbox.put(identity, frames.Resync())

    def lost(self, identities: Iterable[bytes]) -> None:
        """These peers are gone or did not read in time. Those that still live will ask for what they missed."""
        for identity in identities:
            self._questions.forget(identity)
            session = self._sessions.pop(identity, None)
            if session is not None and self._identities.get(session.number) == identity:
                del self._identities[session.number]

    @property
    def connected(self) -> int:
        """Sessions that are connected, as far as is known."""
        return len(self._sessions)

    # --- jobs ---

    def _submit(self, identity: bytes, session: Session, frame: frames.Submit, data: bytes, now: Instant) -> None:
        try:
            answer = self._queue.submit(session, frame, data, now, self._outside(frame))
        except ValueError as error:
            self._error(identity, 0, FailureClass.INVALID_INPUT, f"Submit {frame.number}: {error}")
            return
        self._outbox.put(identity, frames.Accepted(frame.number, answer.refused, answer.existing))

    def _outside(self, frame: Submit) -> Outside:
        blobs = [payload for group in frame.groups for payload in group.payloads if type(payload) is BlobRef]
        if not blobs:
            return Outside(self._ledger.closed)
        return Outside(self._ledger.closed, self._blobs.missing(blobs))

    def results(self, results: Results, encoded: bytes) -> None:
        """Jobs ended: tells the session they belong to, and whoever else asked for one of them."""
        identity = self._identities.get(results.session)
        if identity is not None:
            self._outbox.put(identity, encoded)
        for watcher in self._questions.watching(results) - {identity}:
            self._outbox.put(watcher, encoded)

    def _ask(self, identity: bytes, session: Session, frame: frames.Ask, now: Instant) -> None:
        self._questions.ask(identity, session.number, frame)

    def answer(self, mono_ns: int) -> int | None:
        """Answers questions after jobs, once this pass is committed. Returns the steady time at which to go on with it;
        None when all are answered."""
        return self._questions.answer(mono_ns)

    def _selected(
        self, ids: list[int], wanted: JobFilter | None, states: tuple[State, ...]
    ) -> tuple[list[int], dict[str, Any]]:
        """The ids that a bulk verb applies to, and where more fit than one applies to, for its answer, the next one and
        the place to go on behind."""
        if ids or wanted is None:
            return ids, {}
        fitting = (job for job in requests.select(self._queue.state, wanted) if job.state in states)
        found = list(islice(fitting, BULK_MAX))
        more = [job.id for job in islice(fitting, 1)]
        following = {"more": more, **requests.place(found[-1])._asdict()} if more else {}
        return [job.id for job in found], following

    def _cancel(self, identity: bytes, session: Session, frame: frames.Cancel, now: Instant) -> None:
        ids, more = self._selected(frame.ids, frame.filter, tuple(State))
        if frame.dry_run:
            self._reply(identity, frame.request, {"would_cancel": ids, **more})
            return
        outcome = self._queue.cancel(ids, now)
        body = {"cancelled": outcome.cancelled, "cancelling": outcome.cancelling, "unknown": outcome.unknown}
        self._reply(identity, frame.request, {**body, **more})

    def _retry(self, identity: bytes, session: Session, frame: frames.Retry, now: Instant) -> None:
        ids, more = self._selected(frame.ids, frame.filter, (State.DEAD,))
        if frame.dry_run:
            self._reply(identity, frame.request, {"would_retry": ids, **more})
            return
        retried = self._queue.retry(ids, now)
        skipped = sorted(set(ids) - set(retried))
        self._reply(identity, frame.request, {"retried": retried, "not_dead": skipped, **more})

    def _list(self, identity: bytes, session: Session, frame: frames.List, now: Instant) -> None:
        jobs, last = requests.listing(self._queue.state, frame.filter)
        following = {"cursor": None} if last is None else last._asdict()
        self._reply(identity, frame.request, {"jobs": [msgspec.structs.asdict(job) for job in jobs], **following})

    # --- the box ---

    def _status(self, identity: bytes, session: Session, frame: frames.Status, now: Instant) -> None:
        body = self.status()
        if frame.blobs:
            body["blobs"] = [blob for blob in frame.blobs if blob in self._queue.state.blobs]
        self._reply(identity, frame.request, body)

    def _operate(self, identity: bytes, session: Session, frame: frames.Operate, now: Instant) -> None:
        drained = set(self._queue.state.drained)
        named = set(frame.workers) or {EVERYONE}
        if frame.verb == "drain":
            self._queue.operate(drained | named, now)
        elif frame.verb == "resume":
            self._queue.operate(set() if EVERYONE in named else drained - named, now)
        elif frame.verb in ("reload", "stop"):
            self.operate(frame.verb)
        else:
            raise ValueError(f"{frame.verb!r} is not a verb; accepted: drain, resume, reload, stop")
        self._reply(identity, frame.request, {"verb": frame.verb, "drained": sorted(self._queue.state.drained)})

    def _subscribe(self, identity: bytes, session: Session, frame: frames.Subscribe, now: Instant) -> None:
        self._stream.subscribe(identity, frame)

    def _cursor_ack(self, identity: bytes, session: Session, frame: frames.CursorAck, now: Instant) -> None:
        self._stream.acknowledge(identity, frame)

    # --- answers ---

    def _reply(self, identity: bytes, request: int, body: Any) -> None:
        self._outbox.put(identity, frames.Reply(request, body))

    def _error(self, identity: bytes, request: int, failure: str, message: str) -> None:
        self._outbox.put(identity, frames.Error(request, failure, message))

    def _bad(self, identity: bytes, request: int, message: str) -> None:
        self.bad_frames += 1
        self._error(identity, request, FailureClass.INVALID_INPUT, message)

    def failed(self, identity: bytes, message: str) -> None:
        """A frame could not be handled, through a fault of this program; nothing was changed."""
        self.bad_frames += 1
        self._error(identity, 0, FailureClass.INTERNAL, f"the frame could not be handled ({message}); please report it")
