"""The nouns of a job that every room shares: its id, its states, its ends, what an attempt is charged to.

A job id is a 64-bit integer, `session << 32 | number`: the broker gives each client session its number once,
the client counts its jobs, so a client knows the id of a job before the daemon has answered, and a job sent
twice is the same job. Ids are unique within one state directory; what leaves the box adds the directory's
random `instance` id. People see it as 13 characters of Crockford base 32.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from empd.payload import Carried
from empd.record import Record

ID_CHARS = 13
SESSION_JOBS_MAX = 1 << 32
RENEWABLE_FROM = 1 << 31
"""A session that has given out so many numbers may be renewed: another takes its place."""
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [one + two for one in _ALPHABET for two in _ALPHABET]
_VALUES = {char: value for value, char in enumerate(_ALPHABET)}
_VALUES.update({"i": 1, "l": 1, "o": 0})
PRIORITY_DEFAULT = 50
PRIORITY_MIN, PRIORITY_MAX = 0, 100


class State(enum.IntEnum):
    """Where an unfinished job stands in the broker."""

    WAITING = 0  # may be claimed now
    DELAYED = 1  # not before a time: `not_before`, or back-off after a failure
    ASSIGNED = 2  # held by one live worker under one epoch
    CANCELLING = 3  # held, and its holder has been told to stop
    DEAD = 4  # dead-lettered; kept with its payload until retried or past retention


class Outcome(enum.IntEnum):
    """How a job ended."""

    COMPLETED = 0
    FAILED = 1
    CANCELLED = 2
    EXPIRED = 3
    DEAD = 4

    @property
    def label(self) -> str:
        """The name used in the API: `completed`, `failed`, …, `dead_lettered`."""
        return "dead_lettered" if self is Outcome.DEAD else self.name.lower()


class Cause(enum.IntEnum):
    """What an attempt that ended early is charged to; each has a budget of its own."""

    JOB_FAULT = 0  # retries
    WORKER_CRASHED = 1  # max_crashes
    HOST_LOST = 2  # max_host_losses
    DRAIN = 3  # not charged
    RELOAD = 4  # not charged
    GPU_FAULT = 5  # not charged
    UPSTREAM = 6  # not charged: upstream 429, open circuit
    NEIGHBOUR = 7  # not charged: a worker with several jobs had to be killed


def format_id(job_id: int) -> str:
    """A job id as people see it."""
    return _ALPHABET[job_id >> 60 & 31] + "".join([_PAIRS[job_id >> shift & 1023] for shift in range(50, -1, -10)])


def parse_id(text: str) -> int:
    """The integer behind a job id as people type it (case and look-alike letters do not matter).

    Raises ValueError when it is not one.
    """
    if len(text) != ID_CHARS:
        raise ValueError(f"a job id has {ID_CHARS} characters, {text!r} has {len(text)}")
    number = 0
    for char in text.lower():
        if char not in _VALUES:
            raise ValueError(f"{text!r} is not a job id: {char!r} cannot stand in one")
        number = number << 5 | _VALUES[char]
    if number >= 1 << 64:
        raise ValueError(f"{text!r} is not a job id: it is past the largest one")
    return number


class JobOptions(Record, kw_only=True):
    """All that is said of a job beside its payload. Times in seconds, `not_before` in Unix seconds."""

    service: str
    encoding: str = "msgpack"  # of inline payloads: msgpack, json, bytes
    priority: int = PRIORITY_DEFAULT  # 0…100, higher first
    timeout_s: float | None = None  # one run; None: the service's
    queue_timeout_s: float | None = None  # from submit to first claim
    total_timeout_s: float | None = None  # from submit to end
    retries: int | None = None  # after faults of the job; None: the service's
    not_before: float | None = None
    after: tuple[int, ...] = ()
    requirements: dict[str, Any] | None = None
    resources: dict[str, Any] | None = None
    customer_id: str | None = None
    workflow_id: str | None = None
    labels: dict[str, str] | None = None
    model_keys: tuple[str, ...] = ()
    trace: str | None = None  # W3C traceparent
    origin: tuple[str, str] | None = None  # hub, its id of the job


class JobGroup(Record):
    """Jobs with the same options. `keys`: their idempotency keys (None or one each, `""` for none)."""

    options: msgspec.Raw
    payloads: list[Carried]
    keys: list[str] | None = None


class Submit(Record, tag=2):
    """Jobs `first`, `first + 1`, … of the session, in the order of the groups. `number` counts the session's
    Submit frames from 1 without gaps; a number that the broker has already taken is answered, not repeated."""

    number: int
    first: int
    groups: list[JobGroup]


class JobFilter(Record):
    """Selects jobs; every field given must fit. `states`: names of `State`. `limit` jobs behind (`cursor`, `after`),
    the place that the answer before this one ended at."""

    service: str | None = None
    states: list[str] | None = None
    customer_id: str | None = None
    workflow_id: str | None = None
    labels: dict[str, str] | None = None
    worker: str | None = None
    cursor: int = 0
    limit: int = 100
    after: int = 0


class AssignedJob(Record):
    """One job under one epoch. `attempt` counts from 1."""

    id: int
    epoch: int
    payload: Carried
    attempt: int = 1
    checkpoint: bytes | None = None


class AssignGroup(Record):
    """Assigned jobs with the same options; `timeout_s` is the run limit that holds (0: none)."""

    options: msgspec.Raw
    timeout_s: float
    jobs: list[AssignedJob]
