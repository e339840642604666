"""From the bytes that a client says of its jobs to `Options`: decoded, checked and resolved once, however many jobs
share them."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from empd.clock import NS_PER_S
from empd.errors import FailureClass
from empd.job import PRIORITY_MAX, PRIORITY_MIN, JobOptions
from empd.payload import ENCODINGS
from empd.queue import matching
from empd.queue.policy import Policy, ServicePolicy
from empd.queue.room import WaitingRoom
from empd.queue.state import Options

INTERNED_MAX = 20_000
INTERNED_BYTES_MAX = 64 << 20
OPTIONS_BYTES_MAX = 32 * 1024
REASON_CHARS_MAX = 160  # each refused job is told it, and all of a frame's answers go into one frame
_decode = msgspec.msgpack.Decoder(JobOptions).decode
_NO_POLICY = ServicePolicy()


class OptionsTable:
    """Interns options by their bytes. `policy` may be replaced when the configuration is read again."""

    def __init__(self, policy: Policy, room: WaitingRoom) -> None:
        self.policy = policy
        self._room = room
        self._known: dict[bytes, Options] = {}
        self._known_bytes = 0

    def get(self, raw: msgspec.Raw) -> Options:
        """The options behind the bytes. Raises ValueError when they are none."""
        data = bytes(raw)
        options = self._known.get(data)
        return self._intern(data, _spec(data)) if options is None else options

    def judge(self, raw: msgspec.Raw) -> tuple[str, str]:
        """Why jobs with these options are not taken: failure class and reason, both empty when they are. What is
        not taken leaves nothing behind."""
        data = bytes(raw)
        options = self._known.get(data)
        if options is not None and options.problem is not None:
            return options.problem
        verdict: tuple[str, str] = (
            FailureClass.INVALID_INPUT,
            f"the options have {len(data)} bytes, accepted: {OPTIONS_BYTES_MAX}",
        )
        if len(data) <= OPTIONS_BYTES_MAX:
            try:
                verdict = self._verdict(_spec(data) if options is None else options.spec)
            except ValueError as error:
                verdict = FailureClass.INVALID_INPUT, str(error)
        if verdict[0]:
            return verdict[0], verdict[1][:REASON_CHARS_MAX]
        (options or self.get(raw)).problem = verdict
        return verdict

    def forget(self) -> None:
        """Resolves anew what comes from now on: groups were dropped."""
        self._known.clear()
        self._known_bytes = 0

    def replace_policy(self, policy: Policy) -> None:
        """New limits hold for jobs submitted from now on."""
        self.policy = policy
        self.forget()

    def _verdict(self, spec: JobOptions) -> tuple[str, str]:
        if wrong := problem(spec):
            return FailureClass.INVALID_INPUT, wrong
        lacking = unmatchable(spec.service, spec.requirements, self.policy)
        return (FailureClass.UNMATCHABLE, lacking) if lacking else ("", "")

    def _intern(self, data: bytes, spec: JobOptions) -> Options:
        if len(self._known) >= INTERNED_MAX or self._known_bytes >= INTERNED_BYTES_MAX:
            self.forget()
        options = self._known[data] = self._resolve(data, spec)
        self._known_bytes += len(data)
        return options

    def _resolve(self, data: bytes, spec: JobOptions) -> Options:
        service = self.policy.services.get(spec.service, _NO_POLICY)
        group = self._room.group(spec.service, spec.priority, spec.requirements)
        group.wants_models = group.wants_models or bool(spec.model_keys)
        return Options(
            raw=msgspec.Raw(data),
            spec=spec,
            group=group,
            timeout_ns=service.timeout_ns if spec.timeout_s is None else _ns(spec.timeout_s),
            queue_timeout_ns=_ns(spec.queue_timeout_s),
            total_timeout_ns=_ns(spec.total_timeout_s),
            not_before_ns=_ns(spec.not_before),
            retries=service.retries if spec.retries is None else spec.retries,
        )


_SECONDS_MAX = 10 * 365 * 86_400.0
_UNIX_SECONDS_MAX = 8e9  # in nanoseconds it still fits 64 bits with sign


def _spec(data: bytes) -> JobOptions:
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"job options: {error}") from None


def _ns(seconds: float | None) -> int:
    """Nanoseconds; what `problem` refuses (an old journal may hold it) counts as no limit."""
    if not seconds or not math.isfinite(seconds):
        return 0
    return int(min(max(seconds, 0.0), _UNIX_SECONDS_MAX) * NS_PER_S)


def problem(spec: JobOptions) -> str:
    """What is wrong with the values, in words that say what is accepted; empty when nothing is."""
    if spec.encoding not in ENCODINGS:
        return f"encoding is {spec.encoding!r}; accepted: {', '.join(ENCODINGS)}"
    if not PRIORITY_MIN <= spec.priority <= PRIORITY_MAX:
        return f"priority is {spec.priority}; accepted: {PRIORITY_MIN} to {PRIORITY_MAX}, higher first"
    for name in ("timeout_s", "queue_timeout_s", "total_timeout_s"):
        value = getattr(spec, name)
        if value is not None and not 0 <= value <= _SECONDS_MAX:
            return f"{name} is {value}; accepted: 0 (no limit) to {_SECONDS_MAX:.0f} seconds"
    if spec.not_before is not None and not 0 <= spec.not_before <= _UNIX_SECONDS_MAX:
        return f"not_before is {spec.not_before}; accepted: a Unix time in seconds"
    if spec.retries is not None and not 0 <= spec.retries <= 1000:
        return f"retries is {spec.retries}; accepted: 0 to 1000"
    if spec.after or spec.resources:
        name = "after" if spec.after else "resources"
        return f"{name} is not enforced by this version, so a job that needs it is not taken; leave it out"
    return matching.problem(spec.requirements) if spec.requirements else ""


def unmatchable(service: str, requirements: dict[str, Any] | None, policy: Policy) -> str:
    """Why no configured worker could ever run such a job; empty when one could."""
    if service not in policy.services:
        known = ", ".join(sorted(policy.services)) or "none"
        return f"no worker is configured for service {service!r}; configured: {known}"
    classes = [worker for worker in policy.classes if service in worker.services]
    for worker in classes:
        if worker.open_ended and matching.could_match(requirements, worker.capabilities):
            return ""
        if matching.matches(requirements, worker.capabilities):
            return ""
    if not requirements and classes:
        return ""
    return f"no configured worker for {service!r} meets the requirements {requirements}"
