"""What the error codes of the OpenAI API mean. The codes are those of its guides and of `ResponseErrorCode`."""

from __future__ import annotations

from empd.connectors.protocol.verdicts import Fault, Retry, Row, VerdictTable
from empd.errors import FailureClass
from empd.job import Cause

REFUSALS = frozenset(
    {
        "bio_policy",
        "content_filter",
        "content_policy_violation",
        "image_content_policy_violation",
        "moderation_blocked",
    }
)
_INPUT = frozenset(
    {
        "context_length_exceeded", "empty_image_file", "failed_to_download_image", "image_file_not_found",
        "image_file_too_large", "image_parse_error", "image_too_large", "image_too_small", "invalid_base64_image",
        "invalid_image", "invalid_image_format", "invalid_image_mode", "invalid_image_url", "invalid_prompt",
        "unsupported_image_media_type",
    }
)  # fmt: skip
_F, _R = FailureClass, Retry

VERDICTS = VerdictTable(
    Row(_F.REFUSED, _R.NEVER, Fault.JOB, "refused by the content policy", codes=REFUSALS),
    # A billing limit says 429 too, but no waiting helps.
    Row(_F.RATE_LIMITED, _R.NOW, Fault.JOB, "too many requests", cause=Cause.UPSTREAM, codes={"rate_limit_exceeded"}),
    Row(_F.RATE_LIMITED, _R.NOW, Fault.JOB, "too many requests", cause=Cause.UPSTREAM, codes={"slow_down"}),
    Row(
        _F.AUTH,
        _R.NEVER,
        Fault.OPERATOR,
        "the account has no credit left",
        codes={"insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached"},
    ),
    Row(_F.NOT_FOUND, _R.NEVER, Fault.JOB, "no such model", codes={"model_not_found"}),
    Row(_F.INVALID_INPUT, _R.NEVER, Fault.JOB, "the service does not accept the input", codes=_INPUT),
    Row(
        _F.UNAVAILABLE,
        _R.NOW,
        Fault.SERVICE,
        "the service is overloaded",
        cause=Cause.UPSTREAM,
        codes={"server_is_overloaded", "service_unavailable_error"},
    ),
    Row(_F.TIMEOUT, _R.LATER, Fault.SERVICE, "the service timed out", doubt=True, codes={"vector_store_timeout"}),
    Row(_F.UNAVAILABLE, _R.LATER, Fault.SERVICE, "the service failed", doubt=True, codes={"server_error"}),
    Row(_F.AUTH, _R.NEVER, Fault.OPERATOR, "not allowed here", codes={"data_residency_mismatch", "invalid_api_key"}),
    Row(
        _F.INVALID_INPUT,
        _R.NEVER,
        Fault.JOB,
        "the service does not accept the request",
        codes={"invalid_request_error"},
        statuses={400},
    ),
)

FAILED = Row(_F.BAD_RESPONSE, _R.LATER, Fault.SERVICE, "the service failed", doubt=True)
"""What follows from an error code that nobody here knows."""
