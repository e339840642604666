"""What a caller may wish of a simulated service, request by request: how long work takes, and what goes wrong.

A wish comes in the JSON body (`duration_s`, `steps`, `fail`, `faults`), or the faults alone in the header `X-Faults`
(JSON), which any request may carry.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import msgspec

Rate = Annotated[float, msgspec.Meta(ge=0, le=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Faults(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What goes wrong with a request, or with the work that it submits.

    `status` (with `retry_after_s`) answers so and does nothing; `status_after` does the work and answers so all the
    same. `error_body`: 200 with an error in it. `cut_after`: the connection breaks after so many pieces of the answer.
    `slow_s`: the answer drips, byte by byte, over this time. `hang`: no answer. `duplicate`: the completion comes
    twice. `forget_after`: after so many questions about it the work is unknown, as after a restart. `times`: only the
    first so many requests to this path with the same `key` (by default the Idempotency-Key); 0: all.
    """

    status: Annotated[int, msgspec.Meta(ge=200, le=599)] | None = None
    status_after: Annotated[int, msgspec.Meta(ge=200, le=599)] | None = None
    retry_after_s: Seconds | None = None
    error_body: bool = False
    cut_after: Count | None = None
    slow_s: Seconds = 0.0
    hang: bool = False
    duplicate: bool = False
    forget_after: Count | None = None
    times: Count = 0
    key: str = ""


NO_FAULTS = Faults()


class Simulated(msgspec.Struct, kw_only=True, frozen=True):
    """How the service behaves where a request wishes nothing. `api_key`: what callers must show (empty: nothing)."""

    duration_s: Seconds = 0.0
    steps: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1
    jitter: Rate = 0.0
    failure_rate: Rate = 0.0
    health_failure_rate: Rate = 0.0
    api_key: str = ""


class Wish(msgspec.Struct, kw_only=True, frozen=True):
    """What one request wishes; None: as the service is set. Other keys of the body are none of ours."""

    duration_s: Seconds | None = None
    steps: Annotated[int, msgspec.Meta(ge=1, le=10_000)] | None = None
    fail: bool = False
    faults: Faults = NO_FAULTS


class Patience:
    """Counts how often a fault has struck, so that it ends after its `times`."""

    def __init__(self) -> None:
        self._struck: Counter[tuple[str, str]] = Counter()

    def strikes(self, faults: Faults, path: str, key: str) -> bool:
        """Whether the fault strikes this request; counts it."""
        if not faults.times:
            return faults is not NO_FAULTS
        place = (path, faults.key or key)
        self._struck[place] += 1
        return self._struck[place] <= faults.times

    def clear(self) -> None:
        """Forgets all."""
        self._struck.clear()


def wish_of(body: Any, header: str | None) -> Wish:
    """The wish in a body and a header. Raises ValueError with what is wrong."""
    try:
        wish = msgspec.convert(body, Wish, strict=False) if isinstance(body, dict) else Wish()
        if header:
            wish = msgspec.structs.replace(wish, faults=msgspec.json.decode(header, type=Faults, strict=False))
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    return wish
