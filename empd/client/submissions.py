"""The session's jobs and Submit frames: numbering, gathering into frames, acknowledgement, sending again. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from empd.client.handle import Batch, Ending, Handle, failure_class
from empd.errors import EmpdError, FailureClass, JobFailed, NotRunning, ProtocolError, Refused
from empd.job import SESSION_JOBS_MAX
from empd.payload import Carried
from empd.result import FinishedJob, Results
from empd.wire.frames import Accepted, JobGroup, Submit

JOBS_PER_FRAME = 256
RENEW_FROM = SESSION_JOBS_MAX - (1 << 24)
RENEW_AT = SESSION_JOBS_MAX - (1 << 22)
"""The session is renewed at the first moment from `RENEW_FROM` on in which nothing waits for an answer; from `RENEW_AT`
on such a moment is brought about: no more frames are sent."""
FRAME_PAYLOAD_BYTES_MAX = 900 * 1024
KEY_CHARS_MAX = 256
JOB_BYTES = 24  # of a payload's and a key's own framing, counted so that a frame stays below its limit
BLOB_BYTES = 96  # of a reference to a blob


class Submissions:
    """All open jobs of a session, and its frames that the daemon has not acknowledged.

    `submit` puts a job into the frame being gathered; `seal` makes that frame ready to go. Frames are numbered from
    1 on, jobs count on from where the daemon says.
    """

    def __init__(self) -> None:
        self.session = 0
        self.next_job = 0
        self.next_frame = 1
        self.open: dict[int, Handle] = {}
        self.foreign: set[int] = set()  # open jobs of other sessions: nobody pushes their results
        self.unacknowledged: dict[int, Batch] = {}
        self.gathering: Batch | None = None
        self._unsent: list[Batch] = []

    def submit(self, handle: Handle, options: msgspec.Raw, payload: Carried, key: str = "") -> None:
        """Takes one job; `handle.number` is set. Same options must be the same object to share a group.

        Raises Refused for a key that no daemon takes.
        """
        if len(key) > KEY_CHARS_MAX:
            raise Refused(FailureClass.INVALID_INPUT, f"an idempotency key has at most {KEY_CHARS_MAX} characters")
        size = _size(payload) + 4 * len(key) + JOB_BYTES
        batch = self.gathering
        # A key stands once in a frame: the second job with it must find the first one taken.
        if batch is not None and (
            len(batch.handles) >= JOBS_PER_FRAME
            or batch.size_bytes + size > FRAME_PAYLOAD_BYTES_MAX
            or (key and key in batch.keys)
        ):
            self.seal()
            batch = None
        if batch is None:
            batch = self.gathering = Batch(self.next_job)
        group = batch.groups[-1] if batch.groups else None
        if group is None or group.options is not options:
            group = JobGroup(options, [])
            batch.groups.append(group)
            size += len(bytes(options))
        group.payloads.append(payload)
        if key or group.keys is not None:
            if group.keys is None:
                group.keys = [""] * (len(group.payloads) - 1)
            group.keys.append(key)
            batch.keys.add(key)
        batch.size_bytes += size
        batch.handles.append(handle)
        handle.batch = batch
        handle.number = self.session << 32 | self.next_job
        self.open[handle.number] = handle
        self.next_job += 1

    def submit_many(
        self,
        handles: Sequence[Handle],
        payloads: list[tuple[str, Carried]],
        options: Mapping[str, msgspec.Raw],
        keys: Iterator[str] | None = None,
    ) -> None:
        """Takes jobs as frames of their own. `payloads`: each one's encoding and bytes; `options` by encoding; `keys`
        are taken as far as they go. Raises Refused for a key that no daemon takes."""
        self.seal()
        if keys is None and len(options) == 1:
            [raw] = options.values()
            if self._submit_frame(handles, raw, [payload for _, payload in payloads]):
                return
        for handle, (encoding, payload) in zip(handles, payloads, strict=True):
            self.submit(handle, options[encoding], payload, next(keys, "") if keys is not None else "")
        self.seal()

    def _submit_frame(self, handles: Sequence[Handle], options: msgspec.Raw, payloads: list[Carried]) -> bool:
        """Makes one frame of jobs that have nothing of their own but payloads. False: it would be too large."""
        count = len(payloads)
        size = sum([len(payload) if type(payload) is bytes else BLOB_BYTES for payload in payloads])
        size += count * JOB_BYTES + len(bytes(options))
        if count > JOBS_PER_FRAME or size > FRAME_PAYLOAD_BYTES_MAX:
            return False
        batch = self.gathering = Batch(self.next_job)
        batch.groups = [JobGroup(options, payloads)]
        batch.handles += handles
        batch.size_bytes = size
        first = self.session << 32 | self.next_job
        for number, handle in enumerate(handles, first):
            handle.number = number
            handle.batch = batch
        self.open.update(zip(range(first, first + count), handles, strict=True))
        self.next_job += count
        self.seal()
        return True

    def seal(self) -> None:
        """Numbers the gathered frame and queues it to be sent."""
        batch, self.gathering = self.gathering, None
        if batch is None:
            return
        batch.number = self.next_frame
        self.next_frame += 1
        self.unacknowledged[batch.number] = batch
        self._unsent.append(batch)

    @property
    def held_back(self) -> bool:
        """Nothing can be sent before the daemon has answered."""
        return bool(self.unacknowledged) and not self._unsent

    def take_unsent(self) -> list[Submit]:
        """The frames to send now, in order."""
        if not self._unsent:
            return []
        batches, self._unsent = self._unsent, []
        if self.next_job >= RENEW_AT:  # only those that the daemon may have taken already
            self._unsent = [batch for batch in batches if not batch.sent]
            batches = [batch for batch in batches if batch.sent]
        for batch in batches:
            batch.sent = True
        return [Submit(batch.number, batch.first, batch.groups) for batch in batches]

    @property
    def used_up(self) -> bool:
        """The session is to be renewed now: none of its frames is on its way."""
        if self.next_job < RENEW_FROM:
            return False
        if self.next_job < RENEW_AT:
            return not self.unacknowledged and self.gathering is None
        return not any(batch.sent for batch in self.unacknowledged.values())

    # --- what the daemon says ------------------------------------------------------------------------------------

    def left_behind(self, timeout_s: float) -> NotRunning | None:
        """What to say to one who leaves now, `timeout_s` after he wanted to, while jobs are neither acknowledged nor
        refused; None where there are none."""
        batches = [*self.unacknowledged.values()]
        if self.gathering is not None:
            batches.append(self.gathering)
        count = sum(len(batch.handles) for batch in batches)
        if not count:
            return None
        jobs, them = ("1 job was", "it") if count == 1 else (f"{count} jobs were", "them")
        return NotRunning(f"{jobs} not acknowledged within {timeout_s:g} s: the daemon may not have {them}")

    def accepted(self, frame: Accepted) -> list[int]:
        """The daemon has the frame. Returns the ids to ask for: results that may have been sent before, to nobody."""
        batch = self.unacknowledged.pop(frame.number, None)
        if batch is None:
            return []  # a second answer to a frame that was sent again
        for refusal in frame.refused:
            handle = _at(batch, refusal.index)
            error = Refused(failure_class(refusal.failure), refusal.reason, refusal.retry_after_s)
            self.fail(handle.number, error)
        ask = [number for index, number in frame.existing if self._follow(_at(batch, index), number)]
        for handle in batch.handles:
            handle.batch = None
        if batch.resent:
            ask += [handle.number for handle in batch.handles if not handle.ended and not handle.foreign]
        return ask

    def _follow(self, handle: Handle, number: int) -> bool:
        """An idempotency key already names job `number`: the handle stands for that job from now on."""
        if handle.number == number or handle.ended:
            return False
        self.open.pop(handle.number, None)
        handle.number = number
        handle.foreign = number >> 32 != self.session
        self.adopt(handle)
        return True

    def adopt(self, handle: Handle) -> None:
        """Follows a job that was not submitted here. Several handles may follow one job."""
        if handle.foreign:
            self.foreign.add(handle.number)
        primary = self.open.setdefault(handle.number, handle)
        if primary is handle or handle.following:
            return
        handle.following = True

        def copy_end(ended: Handle) -> None:
            handle.finished, handle.error, handle.ending = ended.finished, ended.error, ended.ending
            handle.end()

        primary.watch(copy_end)

    def release(self, handle: Handle) -> None:
        """Nobody waits for this job of another session now, unless another handle follows it."""
        if self.open.get(handle.number) is handle and not handle.on_end:
            del self.open[handle.number]

    def followed(self) -> list[int]:
        """The open jobs of other sessions."""
        self.foreign = {number for number in self.foreign if number in self.open}
        return list(self.foreign)

    def finish(self, jobs: Iterable[FinishedJob], ending: Ending) -> None:
        """Delivers ended jobs to their handles. Jobs that nobody waits for, or that ended before, are passed over."""
        take = self.open.pop
        for job in jobs:
            handle = take(job.id, None)
            if handle is not None:
                handle.finished = job
                handle.ending = ending
                callback = handle.on_end
                if callback is not None:
                    handle.on_end = None
                    callback(handle)

    def results(self, frame: Results) -> None:
        """Delivers a Results frame."""
        for group in frame.groups:
            # A Raw is a view of the whole received frame: a copy lets the frame go.
            self.finish(group.jobs, Ending(bytes(group.options), frame.worker, frame.at_ns))

    def acknowledged(self) -> list[int]:
        """The open jobs that the daemon has accepted."""
        return [number for number, handle in self.open.items() if handle.batch is None]

    def fail(self, number: int, error: EmpdError) -> None:
        """Ends an open job without a result."""
        handle = self.open.pop(number, None)
        if handle is not None:
            handle.error = error
            handle.end()

    def fail_all(self, error: EmpdError) -> None:
        """Ends every open job: the conversation cannot go on."""
        for number in list(self.open):
            self.fail(number, error)

    # --- reconnecting --------------------------------------------------------------------------------------------

    def resume(self, session: int, frame_number: int, next_job: int, renewed: bool = False) -> list[int]:
        """The daemon knows the session up to `frame_number`. Queues what is to be sent again, in order, and returns
        the ids of accepted open jobs, to be asked for. With another session number the accepted jobs are lost, unless
        it is `renewed`."""
        known = session == self.session
        self.seal()
        pending = sorted(self.unacknowledged.values(), key=lambda batch: batch.number)
        if known and frame_number >= self.next_frame:
            raise ProtocolError(f"the daemon has frame {frame_number} of session {session}; {self.next_frame} is next")
        waiting = {handle.number for batch in pending for handle in batch.handles}
        accepted = [number for number in self.open if number not in waiting]
        if not known:
            for number in accepted:
                if renewed:
                    self.open[number].foreign = True
                    self.foreign.add(number)
                elif not self.open[number].foreign:
                    lost = "the daemon no longer knows this session, its state was wiped or the session forgotten"
                    self.fail(number, JobFailed(self.open[number].id, FailureClass.HOST_LOST, lost))
            self._move(session, next_job, pending)
            accepted = [number for number, handle in self.open.items() if handle.foreign]
            # Within a known session a number stays, whatever the daemon has lost: it may remember what it refused.
            for number, batch in enumerate(pending, frame_number + 1):
                batch.number = number
            self.next_frame = frame_number + 1 + len(pending)
        self.unacknowledged = {batch.number: batch for batch in pending}
        for batch in pending:
            batch.resent = batch.resent or known
        self._unsent = pending
        return accepted

    def _move(self, session: int, next_job: int, pending: list[Batch]) -> None:
        """Gives the unacknowledged jobs numbers of the new session."""
        self.session = session
        for batch in pending:
            batch.first = next_job
            for handle in batch.handles:
                if self.open.pop(handle.number, None) is not None:
                    handle.number = session << 32 | next_job
                    self.open[handle.number] = handle
                next_job += 1
        self.next_job = next_job


def _size(payload: Carried) -> int:
    return len(payload) if type(payload) is bytes else BLOB_BYTES


def _at(batch: Batch, index: int) -> Handle:
    if not 0 <= index < len(batch.handles):
        raise ProtocolError(f"the daemon answers for job {index} of a frame of {len(batch.handles)}")
    return batch.handles[index]
