"""Services that take work and are asked how it goes: submit, poll, collect; resumed after a crash, cancelled upstream.

    class MyConnector(SubmitAndPoll):
        def extract_job_id(self, response, context): ...        # the service's name for the work
        def parse_status(self, response, context): ...          # → Status: running, terminal or unknown
        def parse_response(self, response, job, context): ...   # the job's result

The id is journaled before the first poll: whoever takes the job up after a crash asks for it instead of submitting
again. Where the service knows an idempotency key (`idempotency_header`), a crash before that is harmless too.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, ClassVar, NamedTuple

import msgspec

from empd.connectors.base import Cancellable, ConnectorConfig, ReportsProgress, Resumable
from empd.connectors.context import Context, JobView
from empd.connectors.failures import BadResponse, ConnectorError, ServiceTimeout, ServiceUnavailable
from empd.connectors.protocol.http import HTTPConnector, given
from empd.connectors.protocol.http_config import HTTPConfig, Method, Seconds
from empd.connectors.protocol.http_response import HTTPResponse
from empd.connectors.protocol.retry import pause
from empd.connectors.protocol.standing import Standing as Standing
from empd.job import Cause

GONE = (404, 410)
STOPPING_INTERVAL_S = 0.1
_GOES_ON = ("drain", "reload", "abandon")
"""Reasons to stop an attempt that are none to stop the work: another attempt takes it up, or has it already."""


class PollConfig(HTTPConfig):
    """`endpoint` takes the work; the paths have `{id}` in them. `result_path`: where the result is fetched, if it does
    not come with the last status. `cancel_path`: none, and work goes on upstream when its job is cancelled.

    The interval grows from `poll_interval_s` by `poll_growth` to `poll_interval_s_max`; `poll_limit_s` 0: only the
    job's own time-out. `unknown_max`: so many times in a row the service may not know the id before it counts as lost.
    """

    status_path: str = "/status/{id}"
    result_path: str = ""
    cancel_path: str = ""
    cancel_method: Method = "POST"
    poll_interval_s: Seconds = 0.5
    poll_growth: Annotated[float, msgspec.Meta(ge=1)] = 1.5
    poll_interval_s_max: Seconds = 5.0
    poll_limit_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    unknown_max: Annotated[int, msgspec.Meta(ge=1)] = 3


class Status(NamedTuple):
    """One answer to "how does it go?". `error`: it ended so. `fraction` None: the service does not say."""

    standing: Standing
    fraction: float | None = None
    message: str = ""
    error: ConnectorError | None = None
    response: HTTPResponse | None = None


RUNNING = Status(Standing.RUNNING)
UNKNOWN = Status(Standing.UNKNOWN)


class SubmitAndPoll(HTTPConnector, Cancellable, Resumable, ReportsProgress):
    """See the module. A service that is not spoken to in this way overrides `submit`, `ask`, `collect`, `interrupt`."""

    Config: ClassVar[type[ConnectorConfig]] = PollConfig
    config: PollConfig

    # --- what a service fills in ---

    def extract_job_id(self, response: HTTPResponse, context: Context) -> str:
        """The service's name for the work that it took. By default `id` of the body. Raises BadResponse."""
        found = response.json()
        if not isinstance(found, dict) or not isinstance(found.get("id"), (str, int)):
            raise BadResponse("the answer to the submission names no id")
        return str(found["id"])

    def parse_status(self, response: HTTPResponse, context: Context) -> Status:
        """What an answer of `status_path` means."""
        raise BadResponse(f"{type(self).__name__} does not read a status", retry=False)

    # --- the four verbs ---

    async def submit(self, job: JobView, context: Context) -> str:
        """Gives the work to the service; returns its id."""
        response = await self.call(job, context)
        return self.extract_job_id(response, context)

    async def ask(self, upstream_id: str, context: Context) -> Status:
        """How it goes. An id that the service does not know is `UNKNOWN`, not an error."""
        response = await self.request(
            "GET", self.config.status_path, context, path_args={"id": upstream_id}, accept=GONE
        )
        if response.status in GONE:
            return UNKNOWN
        status = self.parse_status(response, context)
        return status if status.response is not None else status._replace(response=response)

    async def collect(self, upstream_id: str, status: Status, job: JobView, context: Context) -> Any:
        """The result of work that has ended well."""
        response = status.response
        if self.config.result_path or response is None:
            response = await self.request("GET", self.config.result_path, context, path_args={"id": upstream_id})
        return await given(self.parse_response(response, job, context))

    async def interrupt(self, upstream_id: str, context: Context) -> bool:
        """Stops the work upstream; False where the service has no such verb."""
        if not self.config.cancel_path:
            return False
        await self.request(
            self.config.cancel_method,
            self.config.cancel_path,
            path_args={"id": upstream_id},
            accept=(*GONE, 409),
            repeatable=True,
            aside=True,
        )
        return True

    # --- the way of a job ---

    async def process(self, job: JobView, context: Context) -> Any:
        """Submits, unless an earlier attempt did, then polls and collects."""
        await context.load()
        handle = context.upstream.handle
        if handle is not None and handle.id and not handle.ended:
            context.log("taken up where an earlier attempt left it", upstream_id=handle.id)
            upstream_id = handle.id
        else:
            upstream_id = await self._submit(job, context)
        status = await self._poll(upstream_id, context)
        if status.error is not None:
            await context.upstream.ended()
            raise status.error
        return await self.collect(upstream_id, status, job, context)

    async def resume(self, job: JobView, context: Context) -> Any:
        """As `process`, which looks for what was begun."""
        return await self.process(job, context)

    async def cancel(self, job: JobView, context: Context) -> None:
        """Has the work stopped upstream, if it is there; `process` ends when it has stopped."""
        handle = context.upstream.handle
        if handle is not None and handle.id and context.stop_reason not in _GOES_ON:
            await self._interrupt(handle.id, context)

    async def _submit(self, job: JobView, context: Context) -> str:
        deduplicates = bool(self.config.idempotency_header)
        upstream = context.upstream
        # With a key the same call again is the same submission, so only without one must the intent be known first.
        if not deduplicates:
            await upstream.intend(self.kind)
            if upstream.doubt and not self.config.retry.repeat_in_doubt:
                raise ConnectorError(f"not sent again: {upstream.doubt}", retry=False)
        upstream_id = await self.submit(job, context)
        if deduplicates:
            await upstream.intend(self.kind, upstream_id, deduplicates=True)
        else:
            await upstream.submitted(upstream_id)
        context.log("submitted", upstream_id=upstream_id)
        if context.cancelled and context.stop_reason not in _GOES_ON:
            # `cancel` came while the id was not known yet.
            await self._interrupt(upstream_id, context)
        return upstream_id

    async def _interrupt(self, upstream_id: str, context: Context) -> None:
        if not await self.interrupt(upstream_id, context):
            context.log("the service cannot be told to stop; its work goes on", upstream_id=upstream_id)

    async def _poll(self, upstream_id: str, context: Context) -> Status:
        config = self.config
        began_s, interval_s, unknown = context.clock(), config.poll_interval_s, 0
        while True:
            status = await self.ask(upstream_id, context)
            if status.standing is Standing.TERMINAL:
                return status
            if context.cancelled:
                await self._stopping(status, context)
            unknown = unknown + 1 if status.standing is Standing.UNKNOWN else 0
            if unknown >= config.unknown_max:
                await self._lost(upstream_id, context)
            if status.fraction is not None or unknown == 0:
                context.progress(context.fraction if status.fraction is None else status.fraction, status.message)
            if config.poll_limit_s and context.clock() - began_s > config.poll_limit_s:
                raise ServiceTimeout(f"{upstream_id} was not done after poll_limit_s ({config.poll_limit_s:g})")
            if context.cancelled:
                await asyncio.sleep(STOPPING_INTERVAL_S)
            else:
                await pause(interval_s, context)
            interval_s = min(interval_s * config.poll_growth, config.poll_interval_s_max)

    async def _stopping(self, status: Status, context: Context) -> None:
        """Ends the attempt, unless the work is still being stopped upstream."""
        if context.stop_reason in _GOES_ON or not self.config.cancel_path or status.standing is Standing.UNKNOWN:
            raise ConnectorError(f"stopped: {context.stop_reason}")

    async def _lost(self, upstream_id: str, context: Context) -> None:
        """The service has forgotten the work (a restart): the next attempt submits it again, with the same key."""
        deduplicates = bool(self.config.idempotency_header)
        await context.upstream.intend(self.kind, deduplicates=deduplicates)
        raise ServiceUnavailable(f"the service does not know {upstream_id} any more", cause=Cause.JOB_FAULT)

    @property
    def kind(self) -> str:
        """The service's name in the journal."""
        return self.connector_id or self.service_type
