"""The workers' side of the broker: hellos, outcomes, checkpoints; and what they are sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from empd.broker.outbox import Outbox
from empd.clock import NS_PER_MS, Instant
from empd.errors import FailureClass, ProtocolError
from empd.queue.claims import Claim
from empd.queue.machine import Queue, StaleState
from empd.queue.rows import Stopping
from empd.queue.state import Job, Offer, Worker
from empd.wire import frames
from empd.wire.codec import decode_worker_frame

SLOTS_MAX = 65_536
SETTLE_NS_MAX = 20 * NS_PER_MS
_DEAD_KEPT = 1_024


class WorkerDesk:
    """Handles every frame that workers send. Answers and claims go to the outbox."""

    def __init__(self, queue: Queue, outbox: Outbox, instance: str) -> None:
        self._queue = queue
        self._outbox = outbox
        self._settled: dict[bytes, int] = {}  # the newest Done of each that it has not been told of
        self._settled_ns = 0  # since when
        self._instance = instance
        self._workers: dict[bytes, Worker] = {}
        self._identities: dict[tuple[str, int], bytes] = {}
        self._dead: deque[int] = deque(maxlen=_DEAD_KEPT)  # generations
        self.bad_frames = 0
        self._handlers: dict[type, Callable[[bytes, Worker, Any, Instant], None]] = {
            frames.Capacity: self._capacity,
            frames.Done: self._done,
            frames.Checkpoint: self._checkpoint,
            frames.StateSet: self._state_set,
            frames.StateGet: self._state_get,
            frames.Abandoned: self._abandoned,
        }

    def handle(self, identity: bytes, data: bytes, now: Instant) -> None:
        """One frame, whatever its bytes are."""
        try:
            frame = decode_worker_frame(data)
        except ProtocolError as error:
            self.bad_frames += 1
            self._error(identity, 0, FailureClass.INVALID_INPUT, str(error))
            return
        if type(frame) is frames.WorkerHello:
            self._hello(identity, frame, now)
            return
        worker = self._workers.get(identity)
        if worker is None:
            self._error(identity, getattr(frame, "request", 0), FailureClass.REFUSED, "say WorkerHello first")
        else:
            self._handlers[type(frame)](identity, worker, frame, now)

    def _hello(self, identity: bytes, frame: frames.WorkerHello, now: Instant) -> None:
        if frame.version != frames.VERSION:
            message = f"protocol {frame.version} is not spoken here; this is {frames.VERSION}"
            self._error(identity, 0, FailureClass.INVALID_INPUT, message)
            return
        if frame.generation in self._dead:
            # What it said before it died can be read after the news of its death.
            self._error(identity, 0, FailureClass.REFUSED, f"worker {frame.name} of this generation is dead")
            return
        worker, abandon = self._queue.hello(frame.name, frame.generation, frame.held, now)
        worker.worker_type = frame.worker_type
        worker.pid = frame.pid
        worker.capabilities = frame.capabilities
        worker.device = frame.device
        self._workers.pop(self._identities.get(worker.key, b""), None)
        self._workers[identity] = worker
        self._identities[worker.key] = identity
        self._outbox.put(
            identity, frames.WorkerWelcome(frames.VERSION, self._queue.state.boot, self._instance, abandon)
        )
        self._offer(worker, frame.slots, frame.offers, "")
        for job in worker.held.values():
            if job.extra is not None and job.extra.stop:
                self._outbox.put(identity, frames.Stop(job.id, job.epoch, job.extra.stop))

    def _capacity(self, identity: bytes, worker: Worker, frame: frames.Capacity, now: Instant) -> None:
        self._offer(worker, frame.slots, frame.offers, frame.reason)

    def _offer(self, worker: Worker, slots: int, offers: list[frames.ServiceOffer], reason: str) -> None:
        told = {o.service: Offer(min(o.slots, SLOTS_MAX), o.reason, o.models) for o in offers}
        self._queue.offer(worker, min(slots, SLOTS_MAX), told, reason)

    def _done(self, identity: bytes, worker: Worker, frame: frames.Done, now: Instant) -> None:
        self._queue.done(worker, frame, now)
        if not self._settled:
            self._settled_ns = now.mono_ns
        self._settled[identity] = frame.number

    def _checkpoint(self, identity: bytes, worker: Worker, frame: frames.Checkpoint, now: Instant) -> None:
        try:
            self._queue.checkpoint(worker, (frame.id, frame.epoch), frame.data, now, frame.doubt)
        except StaleState as error:
            self._error(identity, frame.request, FailureClass.REFUSED, str(error))
        except ValueError as error:
            self._error(identity, frame.request, FailureClass.INVALID_INPUT, str(error))
        else:
            self._outbox.put(identity, frames.Stored(frame.request))

    def _state_set(self, identity: bytes, worker: Worker, frame: frames.StateSet, now: Instant) -> None:
        try:
            version = self._queue.set_state(
                worker, (frame.id, frame.epoch), frame.key, frame.expected_version, frame.data, now
            )
        except StaleState as error:
            self._error(identity, frame.request, FailureClass.REFUSED, str(error))
        except ValueError as error:
            self._error(identity, frame.request, FailureClass.INVALID_INPUT, str(error))
        else:
            self._outbox.put(identity, frames.Stored(frame.request, version))

    def _state_get(self, identity: bytes, worker: Worker, frame: frames.StateGet, now: Instant) -> None:
        known = self._queue.state.connector_states.get(frame.key)
        version, data = (known.version, known.data) if known is not None else (0, b"")
        self._outbox.put(identity, frames.StateValue(frame.request, version, data))

    def _abandoned(self, identity: bytes, worker: Worker, frame: frames.Abandoned, now: Instant) -> None:
        self._queue.abandoned(worker, frame.jobs, now)

    # --- what the pass's decisions send ---

    def claims(self, now: Instant) -> None:
        """Gives every worker with free slots what waits for it: first what names models that it has loaded."""
        for identity, worker in self._workers.items():
            if worker.loaded:
                self._give(identity, self._queue.claim(worker, now, loaded=True))
        for identity, worker in self._workers.items():
            self._give(identity, self._queue.claim(worker, now))

    def _give(self, identity: bytes, claim: Claim | None) -> None:
        if claim is not None:
            self._outbox.put(identity, frames.Assign(claim.groups, self._settled.pop(identity, 0)))

    def settle(self, mono_ns: int, idle: bool) -> int | None:
        """Tells workers what is durable, when no claim has said it meanwhile: nobody waits for that, so they are not
        woken for it after each job. `idle`: the broker has nothing else to do. Returns the steady time to come back."""
        if not self._settled:
            return None
        due_ns = self._settled_ns + SETTLE_NS_MAX
        if not idle and mono_ns < due_ns:
            return due_ns
        for identity, number in self._settled.items():
            self._outbox.put(identity, frames.Settled(number))
        self._settled.clear()
        return None

    def stopping(self, body: Stopping) -> None:
        """Tells holders to stop."""
        for item in body.jobs:
            job: Job | None = self._queue.state.jobs.get(item.id)
            if job is not None and job.holder is not None:
                identity = self._identities.get(job.holder.key)
                if identity is not None:
                    self._outbox.put(identity, frames.Stop(item.id, item.epoch, item.failure))

    def forget(self, key: tuple[str, int]) -> None:
        """The worker incarnation is dead."""
        identity = self._identities.pop(key, None)
        if identity is not None:
            self._workers.pop(identity, None)

    def buried(self, generation: int) -> None:
        """Nothing that comes from this generation counts any more."""
        self._dead.append(generation)

    def lost(self, identities: Iterable[bytes]) -> None:
        """These connections broke while something was sent. A worker that lives says hello again; until then it gets
        nothing, and what it did not get is settled by that hello."""
        for identity in identities:
            worker = self._workers.pop(identity, None)
            if worker is not None and self._identities.get(worker.key) == identity:
                del self._identities[worker.key]
                worker.queues = []

    def _error(self, identity: bytes, request: int, failure: str, message: str) -> None:
        self._outbox.put(identity, frames.Error(request, failure, message))

    def failed(self, identity: bytes, message: str) -> None:
        """A frame could not be handled, through a fault of this program; nothing was changed."""
        self.bad_frames += 1
        self._error(identity, 0, FailureClass.INTERNAL, f"the frame could not be handled ({message}); please report it")
