"""What a response object says: texts, refusals, pictures, calls of functions; and where it stands. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from empd.connectors.failures import BadResponse, ConnectorError, RefusedByService
from empd.connectors.protocol.http_poll import RUNNING, UNKNOWN, Standing, Status
from empd.connectors.protocol.verdicts import VerdictTable
from empd.connectors.service.openai.faults import FAILED, REFUSALS
from empd.errors import FailureClass

_GOES_ON = ("queued", "in_progress")


class Output(NamedTuple):
    """`pictures` are base64; `calls` are function calls as they came."""

    text: str
    refusal: str
    pictures: list[str]
    pictures_asked: int
    calls: list[dict[str, Any]]


def read(response: dict[str, Any]) -> Output:
    """The output items of a response. The service gives texts in parts; they are put together here."""
    texts: list[str] = []
    refusals: list[str] = []
    pictures: list[str] = []
    calls: list[dict[str, Any]] = []
    asked = 0
    for item in response.get("output") or ():
        kind = item.get("type")
        if kind == "message":
            for part in item.get("content") or ():
                if part.get("type") == "output_text":
                    texts.append(part.get("text") or "")
                elif part.get("type") == "refusal":
                    refusals.append(part.get("refusal") or "refused")
        elif kind == "image_generation_call":
            asked += 1
            if item.get("result"):
                pictures.append(item["result"])
        elif kind == "function_call":
            calls.append(item)
    return Output("".join(texts), " ".join(refusals), pictures, asked, calls)


def standing(response: Any, verdicts: VerdictTable) -> Status:
    """Where a response stands, and the error that it ended with. Cut at its length, it has ended with a result."""
    if not isinstance(response, dict) or not isinstance(response.get("status"), str):
        raise BadResponse("the answer is not a response object")
    status = response["status"]
    if status in _GOES_ON:
        return RUNNING._replace(message=status)
    error: ConnectorError | None = None
    if status == "failed":
        row = verdicts.of_code(*verdicts.codes(response)) or FAILED
        error = row.error(verdicts.message(response))
    elif status == "cancelled":
        error = ConnectorError("cancelled at the service", failure=FailureClass.CANCELLED, retry=False)
    elif status == "incomplete":
        reason = (response.get("incomplete_details") or {}).get("reason", "")
        if reason in REFUSALS:
            error = RefusedByService("the answer was stopped by the content filter", evidence=read(response).text)
    elif status != "completed":
        return UNKNOWN
    return Status(Standing.TERMINAL, message=status, error=error)
