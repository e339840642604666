"""What services say about their rate limits in an answer's headers.

Sources: OpenAI (`x-ratelimit-remaining-requests`, resets as durations), GitHub (epoch seconds), GitLab
(`RateLimit-*`), Linear (epoch milliseconds), Jira (ISO time), and the IETF draft's `RateLimit: "name";r=50;t=30`.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from typing import NamedTuple


class Left(NamedTuple):
    """So many calls are left until a reset in so many seconds."""

    remaining: int
    reset_s: float


_FAMILIES = (
    ("X-RateLimit-Remaining", "X-RateLimit-Reset"),
    ("X-RateLimit-Remaining-Requests", "X-RateLimit-Reset-Requests"),
    ("X-RateLimit-Requests-Remaining", "X-RateLimit-Requests-Reset"),
    ("RateLimit-Remaining", "RateLimit-Reset"),
)
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_STRUCTURED = re.compile(r";\s*([rt])=(\d+)")
_EPOCH_S_MIN = 10**8  # a larger number is a moment, not a duration (three years)
_EPOCH_MS_MIN = 10**11
_NUMBER_CHARS_MAX = 20


def reset_s(text: str, wall_s: float) -> float | None:
    """Seconds until a reset that is written as seconds, `6m0s`, `120ms`, epoch (s or ms) or ISO time. None: neither."""
    text = text.strip()
    if not text or len(text) > 40:
        return None
    if text.isascii() and text.replace(".", "", 1).isdigit() and len(text) <= _NUMBER_CHARS_MAX:
        number = float(text)
        if number >= _EPOCH_MS_MIN:
            number = number / 1000 - wall_s
        elif number >= _EPOCH_S_MIN:
            number -= wall_s
        return max(0.0, number)
    match = _DURATION.fullmatch(text)
    if match is not None:
        hours, minutes, seconds, milliseconds = (float(group or 0) for group in match.groups())
        return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return max(0.0, moment.timestamp() - wall_s)


def left_of(headers: Mapping[str, str], wall_s: float) -> list[Left]:
    """What is left, by each family of headers that the answer carries. `headers` compares names without case."""
    found = []
    for remaining_name, reset_name in _FAMILIES:
        remaining = headers.get(remaining_name)
        if remaining is not None and remaining.isascii() and remaining.isdigit() and len(remaining) < _NUMBER_CHARS_MAX:
            until_s = reset_s(headers.get(reset_name, ""), wall_s)
            if until_s is not None and math.isfinite(until_s):
                found.append(Left(int(remaining), until_s))
    structured = headers.get("RateLimit")
    if structured is not None:
        parts = dict(_STRUCTURED.findall(structured[:200]))
        if "r" in parts and "t" in parts:
            found.append(Left(int(parts["r"]), float(parts["t"])))
    return found
