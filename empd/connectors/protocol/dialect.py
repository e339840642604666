"""What a service with a message protocol says of itself: how its messages are built, told apart and read. No I/O.

The methods are the whole of a simple service; each has a default that fits where the service has nothing of the kind.
"""

from __future__ import annotations

import enum
from typing import Any, ClassVar, NamedTuple

from empd.connectors.context import Context
from empd.connectors.failures import BadResponse, ConnectorError
from empd.connectors.protocol.correlation import MessageType
from empd.connectors.protocol.standing import Standing as Standing
from empd.connectors.protocol.verdicts import COMMON, VerdictTable
from empd.job import format_id


class JobIds(enum.StrEnum):
    """Under which id a service knows a job."""

    OURS = "ours"  # it takes the id that the job is handed over with
    REFERENCE = "reference"  # its own, told in a JOB_SUBMIT message that names ours too
    TURN = "turn"  # its own, and its JOB_SUBMIT message names no other: one job at a time is handed over


class Answer(NamedTuple):
    """What `query_job` found: for a terminal job `kind` says how it ended, and `message` is what `parse_job_result` or
    `extract_error` then get."""

    standing: Standing
    kind: MessageType = MessageType.UNKNOWN
    message: Any = None


RUNNING = Answer(Standing.RUNNING)
UNKNOWN = Answer(Standing.UNKNOWN)


class Progress(NamedTuple):
    """How far a job is: `fraction` 0…1."""

    fraction: float
    message: str = ""
    step: int = 0
    steps: int = 0


class Dialect:
    """The part of a `WebSocketConnector` that differs from service to service."""

    job_ids: JobIds = JobIds.OURS
    confirms_cancel: bool = False
    """Whether the service tells when a cancelled job has stopped."""

    verdicts: ClassVar[VerdictTable] = COMMON

    def job_id_of(self, context: Context) -> str:
        """The id under which a job is handed over: never the same for two attempts."""
        return f"{format_id(context.job.id)}-{context.epoch}"

    def build_job_message(self, job_id: str, context: Context) -> Any:
        """The message that hands a job over; text and bytes are sent as they are, anything else as JSON."""
        return {"type": "job", "id": job_id, "payload": context.payload}

    def classify_message(self, message: Any) -> MessageType:
        """What a decoded message means."""
        return MessageType.UNKNOWN

    def extract_job_id(self, message: Any) -> str | None:
        """The service's id of the job that a message is about; None when it names none."""
        return None

    def extract_reference(self, message: Any) -> str | None:
        """Our id of a job, in a JOB_SUBMIT message that brings the service's own."""
        return None

    def extract_progress(self, message: Any) -> Progress | None:
        """How far the job is; None: it does not say."""
        return None

    def extract_error(self, message: Any) -> ConnectorError:
        """What a JOB_ERROR message means."""
        return BadResponse(self.verdicts.message(message) or "the service reports an error")

    async def parse_job_result(self, message: Any, context: Context) -> Any:
        """The result in a JOB_COMPLETE message; may fetch more."""
        return message

    def build_cancel_message(self, job_id: str) -> Any:
        """The message that ends a job; None when the service has none."""
        return None

    def build_heartbeat_message(self) -> Any:
        """What asks for a sign of life; None: a ping frame."""
        return None

    async def query_job(self, job_id: str, context: Context) -> Answer:
        """Asks the service for a job by another way than waiting. See `Answer`."""
        return UNKNOWN

    async def on_connection_established(self, again: bool) -> None:
        """The connection is up, jobs do not pass yet: the place to log in. Raising ends the connection."""

    def on_connection_message(self, message: Any) -> None:
        """A message about the connection has come."""

    def on_job_message(self, kind: MessageType, message: Any, context: Context) -> None:
        """A message about a job that runs here, before its meaning takes effect."""
