"""What a gRPC status means: rows for the verdict table, by the name of the status code.

https://grpc.github.io/grpc/core/md_doc_statuscodes.html
"""

from __future__ import annotations

from empd.connectors.protocol.verdicts import Fault, Retry, Row, VerdictTable
from empd.errors import FailureClass
from empd.job import Cause

_F, _R, _UPSTREAM = FailureClass, Retry, Cause.UPSTREAM
_JOB, _OPERATOR, _SERVICE = Fault.JOB, Fault.OPERATOR, Fault.SERVICE

GRPC_ROWS = (
    Row(_F.INVALID_INPUT, _R.NEVER, _JOB, codes={"INVALID_ARGUMENT", "OUT_OF_RANGE", "ALREADY_EXISTS"}),
    Row(_F.NOT_FOUND, _R.NEVER, _JOB, codes={"NOT_FOUND"}),
    Row(_F.AUTH, _R.NEVER, _OPERATOR, codes={"UNAUTHENTICATED", "PERMISSION_DENIED"}),
    Row(_F.UNAVAILABLE, _R.NEVER, _OPERATOR, "the service does not offer this", codes={"UNIMPLEMENTED"}),
    # Also what this side says of an answer above `message_bytes_max`: only with a hint when to come again (see
    # `verdict_of`) it is the service's wish, and free of charge.
    Row(_F.RATE_LIMITED, _R.LATER, _JOB, codes={"RESOURCE_EXHAUSTED"}),
    Row(_F.UNAVAILABLE, _R.LATER, _SERVICE, cause=_UPSTREAM, codes={"UNAVAILABLE"}),
    Row(_F.UNAVAILABLE, _R.LATER, _JOB, codes={"FAILED_PRECONDITION"}),
    Row(_F.UNAVAILABLE, _R.LATER, _JOB, doubt=True, codes={"ABORTED", "CANCELLED"}),
    Row(_F.TIMEOUT, _R.LATER, _SERVICE, "no answer in time", doubt=True, codes={"DEADLINE_EXCEEDED"}),
    # As a plain HTTP 500: charged, as a payload that breaks the service must not come again for ever.
    Row(_F.UNAVAILABLE, _R.LATER, _SERVICE, "the service failed", doubt=True, codes={"INTERNAL", "UNKNOWN"}),
    Row(_F.BAD_RESPONSE, _R.LATER, _SERVICE, doubt=True, codes={"DATA_LOSS"}),
)

TOKEN_ENDED = Row(_F.AUTH, _R.LATER, _OPERATOR, "the token was no longer accepted in mid-stream", doubt=True)
"""A stream that cannot be begun again. Another attempt has another token."""

GRPC = VerdictTable(*GRPC_ROWS)


def verdict_of(table: VerdictTable, code: str, retry_after_s: float | None) -> Row:
    """The row for a status; one that says when to come again is not charged to the job."""
    row = table.of_code(code) or GRPC.of_code(code) or GRPC_ROWS[-2]
    return row._replace(cause=_UPSTREAM) if retry_after_s is not None and row.retry is not _R.NEVER else row
