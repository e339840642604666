"""WebSocket services: many jobs on one connection that is kept up, each message led to its job by the id it names.

A service of this kind is a few short methods (`dialect.Dialect`): `build_job_message`, `classify_message`,
`extract_job_id`, `extract_progress`, `parse_job_result`, `extract_error`. What may be added:

    submit                  another way to hand a job over (an HTTP call)
    build_cancel_message    with the base class Cancellable; or `cancel_upstream`, for another way to cancel
    query_job               with the base class Resumable: then a job outlives its connection, and its worker

A job that was lost from sight (connection gone, or silence longer than `message_timeout_s`) is asked for by
`query_job`, whose answer has three values: running (wait on), terminal (that is its end), unknown (the service has
lost it: the attempt ends, uncharged after a lost connection). Absent is never taken for done.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from empd.connectors.base import ConnectorConfig, Resumable, Site
from empd.connectors.context import Context, JobView
from empd.connectors.failures import ConnectorError, ServiceTimeout, ServiceUnavailable, describe
from empd.connectors.protocol.calls import Calls, Rules
from empd.connectors.protocol.correlation import Delivery, MessageType
from empd.connectors.protocol.dialect import JobIds, Standing
from empd.connectors.protocol.link import LinkState
from empd.connectors.protocol.run import Run, Stopped
from empd.connectors.protocol.socket_service import SocketService
from empd.connectors.protocol.verdicts import Fault, Retry, Row, Trouble
from empd.errors import FailureClass

OWED_MAX = 1_000
"""Cancels that could not be sent, kept until the connection is back."""

NAME_S_MAX = 10.0
"""How long a job that was told to stop waits for the service to name it, before its connection is broken."""

POLL_S = 0.05

_FOR_GOOD = ("cancelled", "timeout")
"""A job that stops for one of these reasons is not taken up by another attempt where it stood."""


JOBS = "jobs"
"""What the circuit is called: there is one for all jobs of the connection."""

_SERVICE_FAULTS = (FailureClass.UNAVAILABLE, FailureClass.TIMEOUT, FailureClass.BAD_RESPONSE)


class NotThere(ServiceUnavailable):
    """The service does not know a job that an earlier attempt handed over."""


class WebSocketConnector(SocketService):
    """Base of the services that speak over one WebSocket."""

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        super().__init__(config, site)
        self.resumes = isinstance(self, Resumable)
        self.calls = Calls(Rules(self.config.reconnect, self.config.rate_limit, self.config.circuit), site)
        self._turn = asyncio.Lock()
        self._owed: dict[str, None] = {}

    async def open(self) -> None:
        """Ready to connect; the circuit begins closed."""
        self.calls.forget_circuits()
        await super().open()

    async def process(self, job: JobView, context: Context) -> Any:
        """Hands the job over and waits for its end. One whole job is one call to limits and circuit."""
        run = Run(context, self.correlation, self.job_id_of(context), named=self.job_ids is JobIds.OURS)

        async def attempt() -> Any:
            try:
                return await self._attempt(run, handed_over=False)
            except ConnectorError as error:
                if error.failure in _SERVICE_FAULTS and not isinstance(error, Stopped):
                    raise Trouble(Row(error.failure, Retry.NEVER, Fault.SERVICE), error) from error
                raise

        try:
            return await self.calls.once(JOBS, attempt, context)
        except Trouble as trouble:
            raise trouble.error from trouble.__cause__

    async def resume(self, job: JobView, context: Context) -> Any:
        """Takes up what an earlier attempt handed over; hands it over anew when the service does not know it."""
        handle = context.upstream.handle
        if handle is not None and handle.id and not handle.ended:
            try:
                run = Run(context, self.correlation, handle.id, named=True)
                return await self._attempt(run, handed_over=True)
            except NotThere:
                context.log("the service does not know the earlier submission", id=handle.id)
                await context.upstream.ended()
        return await self.process(job, context)

    async def cancel(self, job: JobView, context: Context) -> None:
        """Ends the job at the service if it is there, and here when the service does not tell of its end."""
        run = self.runs.get((job.id, job.epoch))
        if run is None:
            return
        confirms = False
        if run.owed and run.named and self._is_for_good(context):
            run.owed = False
            try:
                confirms = await self.cancel_upstream(run.key)
            except ServiceUnavailable:
                self._owe(run.key)
        if not confirms:
            run.stop()

    async def submit(self, job_id: str, context: Context) -> None:
        """Hands the job over. When it has returned, the service has the job or the connection breaks."""
        await self.send(self.build_job_message(job_id, context))

    async def cancel_upstream(self, job_id: str) -> bool:
        """Ends a job at the service; True when the service will tell that it has stopped."""
        message = self.build_cancel_message(job_id)
        if message is None:
            return False
        await self.send(message)
        return self.confirms_cancel

    async def _attempt(self, run: Run, *, handed_over: bool) -> Any:
        context, limit_s = run.context, self.config.job_timeout_s
        claim = (context.job.id, context.job.epoch)
        self.runs[claim] = run
        try:
            async with asyncio.timeout(limit_s or None) as limit:
                await run.unless_stopped(self.socket.wanted())
                if handed_over:
                    run.owed = True
                    await self._ask(run, NotThere("the service does not know this job"))
                else:
                    await self._hand_over(run)
                return await self._follow(run)
        except TimeoutError:
            if not limit.expired():
                raise
            await self._end_upstream(run)
            raise ServiceTimeout(f"not done within {limit_s:g} s") from None
        finally:
            del self.runs[claim]
            self.correlation.forget(run.box)
            if run.owed and run.named and self._is_for_good(context):
                self._owe(run.key)

    async def _hand_over(self, run: Run) -> None:
        if self.resumes:
            chosen_id = run.key if self.job_ids is JobIds.OURS else ""
            await run.context.upstream.intend(self.connector_id or type(self).__name__, chosen_id)
        async with contextlib.AsyncExitStack() as turn:
            if self.job_ids is JobIds.TURN:
                await run.unless_stopped(turn.enter_async_context(self._turn))
                turn.callback(setattr, self, "in_turn", None)
                self.in_turn = run
            if run.context.cancelled:
                raise Stopped("the job was told to stop")
            run.owed = True
            generation = self.socket.generation
            try:
                await self.submit(run.key, run.context)
                is_news = not run.named and await self._named(run)
            finally:
                if not run.named and self.in_turn is run:
                    self.spawn(self._name_late(run, turn.pop_all(), generation))
            if is_news and self.resumes:
                await run.context.upstream.submitted(run.key)

    async def _named(self, run: Run) -> bool:
        """Waits until the service has said its own id for the job; False when the job has ended without one."""
        limit_s = self.config.message_timeout_s
        while not (run.named or run.box.ended):
            if not await run.news(limit_s):
                raise ServiceTimeout(f"not acknowledged within {limit_s:g} s")
        return run.named

    async def _name_late(self, run: Run, turn: contextlib.AsyncExitStack, generation: int) -> None:
        """An attempt has ended before the service named its job: that name would be taken for the next job's.

        A job that was told to stop waits for it a while, as breaking the connection would hit its neighbours, and is
        then ended under it.
        """
        async with turn:
            clock = asyncio.get_running_loop().time
            until_s = clock() + (NAME_S_MAX if run.context.cancelled else 0)
            while not run.named and self.socket.usable and self.socket.generation == generation and clock() < until_s:
                await run.news(POLL_S)
            if not run.named:
                await self.socket.drop(generation)
                return
        self.correlation.forget(run.box)
        if self._is_for_good(run.context):
            self._owe(run.key)

    async def _follow(self, run: Run) -> Any:
        while True:
            delivery = run.box.take()
            if delivery is None:
                if not await run.news(self.config.message_timeout_s):
                    await self._ask(run, ServiceTimeout(f"no message for {self.config.message_timeout_s:g} s"))
                continue
            kind, message, _ = delivery
            self.on_job_message(kind, message, run.context)
            match kind:
                case MessageType.JOB_COMPLETE:
                    run.owed = False
                    return await self.parse_job_result(message, run.context)
                case MessageType.JOB_ERROR:
                    await self._ended_badly(run)
                    raise self.extract_error(message)
                case MessageType.JOB_CANCELLED:
                    await self._ended_badly(run)
                    raise ConnectorError("the job was ended at the service", failure=FailureClass.UNAVAILABLE)
                case MessageType.JOB_PROGRESS:
                    progress = self.extract_progress(message)
                    if progress is not None:
                        run.context.progress(*progress)

    async def _ask(self, run: Run, when_unknown: ConnectorError) -> None:
        """Asks the service for a job that was lost from sight; what it answers ends up in the mailbox."""
        generation = self.socket.generation
        try:
            answer = await run.unless_stopped(self.query_job(run.key, run.context))
        except ConnectorError as error:
            # Where the connection broke meanwhile, the next one asks again (or has asked), or nobody can.
            if (self.socket.usable and self.socket.generation == generation) or isinstance(error, Stopped):
                run.box.fail(error)
            return
        except Exception as error:  # a connector's own code; it must not end a connection that all jobs share
            run.box.fail(ServiceUnavailable(f"the service cannot be asked for the job: {describe(error)}"))
            return
        earlier = isinstance(when_unknown, NotThere) and answer.kind is MessageType.JOB_CANCELLED
        if answer.standing is Standing.UNKNOWN or earlier:
            run.box.fail(when_unknown)
        elif answer.standing is Standing.TERMINAL:
            run.box.put(Delivery(answer.kind, answer.message))

    async def _ended_badly(self, run: Run) -> None:
        """The job is no longer at the service: another attempt has to begin anew."""
        run.owed = False
        if self.resumes and not run.context.cancelled:
            await run.context.upstream.ended()

    async def _end_upstream(self, run: Run) -> None:
        """This attempt gives up a job that the service still has."""
        if run.owed:
            await self._ended_badly(run)
            self._owe(run.key)

    def _is_for_good(self, context: Context) -> bool:
        return not self.resumes or context.stop_reason in _FOR_GOOD

    def _owe(self, key: str) -> None:
        """Has a job cancelled at the service as soon as that is possible."""
        self._owed[key] = None
        while len(self._owed) > OWED_MAX:
            del self._owed[next(iter(self._owed))]
        if self.socket.state is LinkState.OPEN:
            self.spawn(self._pay())

    async def _pay(self) -> None:
        while self._owed:
            key = next(iter(self._owed))
            del self._owed[key]
            try:
                await self.cancel_upstream(key)
            except ServiceUnavailable:
                self._owed[key] = None
                return

    async def greet(self, again: bool) -> None:
        """After a loss every job that runs is asked for, and what was left to cancel is cancelled."""
        await super().greet(again)
        if again:
            lost = ServiceUnavailable("the connection was lost, and the service does not know the job any more")
            await asyncio.gather(*(self._ask(run, lost) for run in tuple(self.runs.values()) if run.owed))
            await self._pay()
