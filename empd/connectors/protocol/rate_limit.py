"""How often a service is called: a token bucket, a sliding window, and what the service's own headers say.

Pure: the time is an argument. A caller books its turn and is told how long it must wait for it, so that nobody
overtakes and a burst never exceeds what was declared.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Annotated

import msgspec

from empd.connectors.protocol.rate_headers import Left, left_of

Positive = Annotated[float, msgspec.Meta(gt=0)]


class RateLimitConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """`per_s` with `burst` is a token bucket; `requests_max` in any `window_s` is a sliding window; both may be given.

    `follow_headers`: remaining and reset of the service's rate-limit headers hold calls back too. A job that would
    have to wait longer than `wait_s_max` goes back to the queue. `concurrent_max`: calls at a time.
    """

    per_s: Positive | None = None
    burst: Annotated[int, msgspec.Meta(ge=1)] = 1
    requests_max: Annotated[int, msgspec.Meta(ge=1)] | None = None
    window_s: Positive = 60.0
    follow_headers: bool = True
    wait_s_max: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    concurrent_max: Annotated[int, msgspec.Meta(ge=1)] | None = None


class TokenBucket:
    """`burst` calls at once, and `per_s` in the long run (kept as the time at which the bucket is full again)."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._interval_s = 1 / per_s
        self._slack_s = (burst - 1) / per_s
        self._full_s = -math.inf

    def earliest_s(self, now_s: float) -> float:
        """When the next call may go."""
        return max(now_s, self._full_s - self._slack_s)

    def book(self, at_s: float) -> None:
        """A call goes at `at_s`."""
        self._full_s = max(self._full_s, at_s) + self._interval_s


class Window:
    """At most `requests_max` calls in any `window_s`."""

    def __init__(self, requests_max: int, window_s: float) -> None:
        self._window_s = window_s
        self._booked: deque[float] = deque(maxlen=requests_max)

    def earliest_s(self, now_s: float) -> float:
        """When the next call may go."""
        if len(self._booked) < (self._booked.maxlen or 0):
            return now_s
        return max(now_s, self._booked[0] + self._window_s)

    def book(self, at_s: float) -> None:
        """A call goes at `at_s`."""
        self._booked.append(at_s)


class Steering:
    """What the service says is left: no more calls than that until its reset."""

    def __init__(self) -> None:
        self._left = math.inf
        self._until_s = -math.inf
        self._held_s = -math.inf

    def earliest_s(self, now_s: float) -> float:
        """When the next call may go."""
        if now_s >= self._until_s:
            self._left = math.inf
        at_s = now_s if self._left >= 1 else self._until_s
        return max(at_s, self._held_s)

    def book(self, at_s: float) -> None:
        """A call goes at `at_s`."""
        self._left -= 1

    def observe(self, left: Left, in_flight: int, now_s: float) -> None:
        """An answer said what is left. Other calls in flight may not have been counted by the service yet."""
        self._left, self._until_s = max(0, left.remaining - in_flight), now_s + left.reset_s

    def hold(self, until_s: float) -> None:
        """The service wants no call before then."""
        self._held_s = max(self._held_s, until_s)


class RateLimiter:
    """All limits of one service together."""

    def __init__(self, config: RateLimitConfig) -> None:
        self.config = config
        self._last_s = -math.inf
        self._steering = Steering()
        self._limits: list[TokenBucket | Window | Steering] = [self._steering] if config.follow_headers else []
        if config.per_s is not None:
            self._limits.append(TokenBucket(config.per_s, config.burst))
        if config.requests_max is not None:
            self._limits.append(Window(config.requests_max, config.window_s))

    def earliest_s(self, now_s: float) -> float:
        """When the next call may go."""
        at_s = max(now_s, self._last_s)
        for limit in self._limits:
            earliest_s = limit.earliest_s(now_s)
            at_s = max(at_s, earliest_s)
        return at_s

    def book(self, now_s: float, within_s: float = math.inf) -> float:
        """Books the next turn, unless it is further away than that; returns the seconds to wait for it."""
        at_s = self.earliest_s(now_s)
        if at_s - now_s <= within_s:
            self._last_s = at_s
            for limit in self._limits:
                limit.book(at_s)
        return at_s - now_s

    def observe(self, headers: Mapping[str, str], in_flight: int, now_s: float, wall_s: float) -> None:
        """Takes note of an answer's headers; the family that leaves least decides. `wall_s` is Unix time."""
        if self.config.follow_headers:
            found = left_of(headers, wall_s)
            if found:
                # What is left counts more than for how long: only an empty allowance makes anyone wait.
                self._steering.observe(min(found, key=lambda left: (left.remaining, -left.reset_s)), in_flight, now_s)

    def hold(self, seconds: float, now_s: float) -> None:
        """The service refused a call and wants none for so long."""
        self._steering.hold(now_s + seconds)
