"""From what a connector's `process` gave or raised to an outcome on the wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from empd.connectors.base import Result
from empd.connectors.context import Context
from empd.connectors.failures import BadResponse, describe, sayable
from empd.connectors.verdict import Verdict, judge
from empd.errors import FailureClass
from empd.job import Cause
from empd.memory.arena import Arena
from empd.payload import INLINE_BYTES_MAX, Carried
from empd.wire.frames import FailedJob, JobError
from empd.worker.assets import AttemptAssets
from empd.worker.hosted import Hosted
from empd.worker.outbox import Claim, Outbox

_pack = msgspec.msgpack.Encoder().encode
_BYTES = (bytes, bytearray, memoryview)


class Outcomes:
    """Judges how attempts ended and puts them into the outbox."""

    def __init__(self, outbox: Outbox, arena: Arena, durable: bool, note: Callable[[int], None]) -> None:
        self.outbox = outbox
        self._arena = arena
        self._durable = durable
        self.note = note
        self._tasks: set[asyncio.Task[None]] = set()

    def encode(self, value: Any) -> bytes | None:
        """The value as a frame carries it; None when it takes more than that (`finish` knows)."""
        if type(value) is Result or isinstance(value, _BYTES):
            return None
        data = _pack(value)
        return data if len(data) <= INLINE_BYTES_MAX else None

    async def finish(self, hosted: Hosted, context: Context, value: Any) -> None:
        """Reports a completed job with a result of any size. Raises what makes the result unusable."""
        claim = (context.job.id, context.job.epoch)
        if context.stop_reason == "abandon":
            self._discard(context)
            self.outbox.abandoned(claim)
            return
        if isinstance(context.assets_used, AttemptAssets):
            # Before the result is told, so that who reads it finds this attempt's files and no others.
            await context.assets_used.settle()
        usage = None
        if isinstance(value, Result):
            value, usage = value.value, _measured(value.usage)
        carried = await self._carry(value)
        if isinstance(context.assets_used, AttemptAssets):
            self.outbox.watched[claim] = context.assets_used.settled
        self.outbox.completed(claim, carried, usage)
        hosted.tally.completed += 1

    async def _carry(self, value: Any) -> Carried:
        if isinstance(value, _BYTES) and len(value) > INLINE_BYTES_MAX:
            data, encoding = value, "bytes"
        else:
            data, encoding = _pack(value), "msgpack"
            if len(data) <= INLINE_BYTES_MAX:
                return data
        # The lane waits here and cannot be cancelled: the job is over, only its result is being put away.
        return await asyncio.to_thread(self._arena.put, data, durable=self._durable, encoding=encoding)

    def failed(self, hosted: Hosted, context: Context, error: BaseException) -> None:
        """Reports an attempt that ended with an exception."""
        claim = (context.job.id, context.job.epoch)
        self._discard(context)
        if context.stop_reason:
            self._stopped(hosted, claim, context.stop_reason, context)
            return
        try:
            verdict = self._judge(hosted, error)
        except Exception as worse:  # foreign code again: an exception that cannot tell of itself. The job must end.
            message = f"{type(error).__name__}, which cannot be told: {type(worse).__name__}"
            verdict = Verdict(FailureClass.INTERNAL, message, True, Cause.JOB_FAULT, None, "")
        self.outbox.failed(_failed_job(claim, verdict))
        hosted.tally.ended("failed", verdict.failure.value)

    def _judge(self, hosted: Hosted, error: BaseException) -> Verdict:
        if _in_encoder(error) and not isinstance(error, MemoryError):
            error = BadResponse(f"the result cannot be encoded: {describe(error)}", retry=False)
        verdict = judge(error)
        message, evidence = sayable(verdict.message), sayable(verdict.evidence)
        return verdict._replace(message=hosted.redact(message), evidence=hosted.redact(evidence))

    def _discard(self, context: Context) -> None:
        """Has the files of an attempt that does not count removed, meanwhile."""
        if isinstance(context.assets_used, AttemptAssets):
            task = asyncio.ensure_future(context.assets_used.discard())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def never_ran(self, hosted: Hosted | None, claim: Claim, reason: str) -> None:
        """Reports a job that was stopped before it began."""
        self._stopped(hosted, claim, reason, None)

    def _stopped(self, hosted: Hosted | None, claim: Claim, reason: str, context: Context | None) -> None:
        if hosted is not None:
            hosted.tally.ended("cancelled" if reason == "cancelled" else "failed", reason)
        if reason == "cancelled":
            self.outbox.cancelled(claim)
        elif reason == "abandon":
            self.outbox.abandoned(claim)
        elif reason == "timeout":
            elapsed_s = (time.monotonic_ns() - context.started_ns) / 1e9 if context else 0.0
            message = f"stopped after {elapsed_s:.1f} s: it reached its time-out"
            verdict = Verdict(FailureClass.TIMEOUT, message, True, Cause.JOB_FAULT, None, "")
            self.outbox.failed(_failed_job(claim, verdict))
        else:
            verdict = Verdict(FailureClass.UNAVAILABLE, "the worker was told to stop", True, Cause.DRAIN, None, "")
            self.outbox.failed(_failed_job(claim, verdict))


def _in_encoder(error: BaseException) -> bool:
    """Whether the exception came from encoding the result here, and not from the connector."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename == __file__


def _measured(usage: Any) -> dict[str, float] | None:
    """What a result says it has used. Raises what a frame could not carry, while only this job is hurt by it."""
    if usage is None:
        return None
    measured: dict[str, float] = msgspec.convert(usage, dict[str, float])
    _pack(measured)
    return measured


def _failed_job(claim: Claim, verdict: Verdict) -> FailedJob:
    error = JobError(verdict.failure.value, verdict.message, verdict.evidence)
    return FailedJob(claim[0], claim[1], error, verdict.retry, int(verdict.cause), verdict.retry_after_s)
