"""What a connector has given to an upstream service, kept so that a crash leads to no second submission.

    handle = context.upstream.handle            # what an earlier attempt left; None: nothing was sent
    if handle is None or not handle.id:
        key = await context.upstream.intend("openai", deduplicates=True)     # journaled before the call
        answer = await self.post("/responses", headers={"Idempotency-Key": key})
        await context.upstream.submitted(answer["id"])                       # journaled: the next attempt takes it up

An upstream that takes a chosen id or a key gets the same one again after a crash, and does the work once. Where it
takes neither, a crash between the call and `submitted` leaves a doubt, which is shown on the job.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from empd.job import format_id

_MARK = b"empd-upstream\x01"
"""Tells a handle from what a connector checkpoints by itself."""


class UpstreamHandle(msgspec.Struct, array_like=True, frozen=True):
    """One submission to an upstream service.

    `kind` names the service, `id` is its name for the work (empty: the intent alone is known, the call may or may not
    have arrived), `submission` counts from 1, `ended` says that it is known to have come to an end. `extra` is the
    connector's own.
    """

    kind: str
    id: str = ""
    submitted_epoch: int = 0
    submission: int = 1
    ended: bool = False
    extra: dict[str, Any] = {}

    def encode(self) -> bytes:
        """As a checkpoint."""
        return _MARK + msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes | None) -> UpstreamHandle | None:
        """The handle in a checkpoint; None when it holds something else."""
        if data is None or not data.startswith(_MARK):
            return None
        try:
            return msgspec.msgpack.decode(data[len(_MARK) :], type=cls)
        except msgspec.DecodeError:
            return None


class Attempt(Protocol):
    """What is needed of a context."""

    last_checkpoint: bytes | None

    @property
    def job_id(self) -> int:
        """The job's id."""

    @property
    def epoch(self) -> int:
        """The assignment's number."""

    @property
    def instance(self) -> str:
        """The id of the state directory: job ids are unique within one."""

    def log(self, message: str, **fields: Any) -> None:
        """A line of the job's log."""

    async def checkpoint(self, data: bytes, doubt: str = "") -> None:
        """Returns when the next attempt is sure to get it, and the job shows the doubt."""


class Upstream:
    """One attempt's dealings with its upstream service."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self.handle = UpstreamHandle.decode(attempt.last_checkpoint)
        self.doubt = ""

    @property
    def submission(self) -> int:
        """The number of the submission under way, or of the next: it grows only when the one before is known to have
        ended."""
        handle = self.handle
        return 1 if handle is None else handle.submission + handle.ended

    @property
    def key(self) -> str:
        """The idempotency key of this submission: the same in every attempt that may have sent it."""
        attempt = self._attempt
        name = f"{format_id(attempt.job_id)}-{self.submission}"
        return f"{attempt.instance}-{name}" if attempt.instance else name

    async def intend(
        self,
        kind: str,
        chosen_id: str = "",
        *,
        deduplicates: bool = False,
        fenced: bool = True,
        extra: dict[str, Any] | None = None,
    ) -> str:
        """Journals that a submission is about to be sent; returns its idempotency key. Call it before the upstream.

        `chosen_id`: the id that this side gives the work; not `fenced`: the id tells the work apart, but earlier work
        under another one can neither be taken up nor ruled out by it. `deduplicates`: the upstream does work with the
        same key once. Without a fence, an earlier intent that was never confirmed is a doubt: it is kept in `doubt`,
        shown on the job, and said in its log.
        """
        before = self.handle
        safe = deduplicates or (chosen_id and fenced)
        if before is not None and not before.ended and not safe:
            self.doubt = (
                f"an earlier submission to {before.kind} (epoch {before.submitted_epoch}) may have arrived; "
                "this attempt sends it again"
            )
            self._attempt.log(self.doubt)
        key = self.key
        await self._keep(
            UpstreamHandle(kind, chosen_id, self._attempt.epoch, self.submission, False, extra or {}), self.doubt
        )
        return key

    async def submitted(self, upstream_id: str, **extra: Any) -> None:
        """Journals the upstream's name for what it has taken: the next attempt asks for it instead of sending again."""
        before = self.handle or UpstreamHandle("upstream")
        await self._keep(
            UpstreamHandle(
                before.kind, upstream_id, self._attempt.epoch, self.submission, False, {**before.extra, **extra}
            )
        )

    async def ended(self, **extra: Any) -> None:
        """Journals that the submission has come to an end upstream, whatever it was: the next one is a new one."""
        if self.handle is not None:
            more = {**self.handle.extra, **extra}
            await self._keep(msgspec.structs.replace(self.handle, ended=True, extra=more))

    async def _keep(self, handle: UpstreamHandle, doubt: str = "") -> None:
        await self._attempt.checkpoint(handle.encode(), doubt)
        self.handle = handle
