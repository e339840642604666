"""The facts that the journal holds: one kind of row each, and the body it carries.

A row's `origin` is the session for rows that a client caused, else 0; its `at_ns` is wall time. Bodies are
msgpack arrays like frames, under the same rule: new fields are only appended, with defaults.

    kind        body              says
    STARTED     Started           the broker began boot `boot`; ties wall time to steady time
    CLOCK       Clock             the wall clock was set: ties it anew
    SESSION     SessionOpened     a client session got its number and token
    SUBMITTED   job.Submit        every job of the frame was accepted (the frame as it came)
    TAKEN       Taken             a Submit frame of which some jobs were refused or existed already
    ASSIGNED    Assigned          jobs went to one worker incarnation, under consecutive epochs
    RESULTS     result.Results    jobs ended (a dead-lettered one is kept until retried or forgotten)
    REQUEUED    Requeued          attempts ended early; the jobs wait again
    STOPPING    Stopping          holders are told to stop
    RETRIED     Ids               dead-lettered jobs got another chance
    CHECKPOINT  Checkpointed      a job's state for its next attempt
    STATE       StateWritten      a connector's own state
    CURSOR      Cursor            a consumer of the event stream has processed rows up to `seq`
    OPERATED    Operated          an operator drained or resumed
    FORGOTTEN   Forgotten         sessions, keys, dead letters, consumers past retention
    CARRY       Carry             what a trimmed prefix still has to say
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import msgspec

from empd.job import Submit
from empd.payload import Carried
from empd.record import Record
from empd.result import JobError, Refusal, Results


class Kind(enum.IntEnum):
    """Row kinds; the numbers are for ever."""

    STARTED = 1
    CLOCK = 2
    SESSION = 3
    SUBMITTED = 4
    TAKEN = 5
    ASSIGNED = 6
    RESULTS = 7
    REQUEUED = 8
    STOPPING = 9
    RETRIED = 10
    CHECKPOINT = 11
    STATE = 12
    CURSOR = 13
    OPERATED = 14
    FORGOTTEN = 15
    CARRY = 16


class Started(Record):
    """`mono_ns` is the steady clock at the row's `at_ns`, comparable within `boot_id`. Session numbers up to
    `sessions_opened` are taken, also where no row says by whom (rows were lost). `before`: how the clocks lay in the
    rows before, (boot id, wall minus steady time), for a reader from whom the row that said so was trimmed."""

    boot: int
    boot_id: str
    mono_ns: int
    version: str
    sessions_opened: int = 0
    before: tuple[str, int] | None = None


class Clock(Record):
    """As `Started`, without a new boot."""

    boot_id: str
    mono_ns: int
    before: tuple[str, int] | None = None


class SessionOpened(Record):
    """A client session."""

    session: int
    token: bytes
    name: str


class Taken(Record):
    """Submit frame `submit`, without the jobs at the indexes in `refused` and `existing` ((index, id) pairs).

    `skipped`: earlier frames of the session that were refused whole since its last row, with their refusals.
    """

    submit: msgspec.Raw
    refused: list[Refusal]
    existing: list[tuple[int, int]]
    skipped: list[tuple[int, list[Refusal]]]


class Assigned(Record):
    """Job `ids[i]` is held by the worker under epoch `first_epoch + i`."""

    worker: str
    generation: int
    first_epoch: int
    ids: list[int]


class RequeuedJob(Record):
    """The attempt under `epoch` ended early. `delay_ns`: back-off from the row's time on. `unbegun`: its assignment
    never reached the worker, so it was no attempt."""

    id: int
    epoch: int
    cause: int
    delay_ns: int = 0
    error: JobError | None = None
    unbegun: bool = False


class Requeued(Record):
    """Attempts that ended early."""

    jobs: list[RequeuedJob]


class StoppingJob(Record):
    """The holder under `epoch` is told to stop; `failure`: cancelled, expired or timeout."""

    id: int
    epoch: int
    failure: str


class Stopping(Record):
    """Jobs whose holders are told to stop."""

    jobs: list[StoppingJob]


class Ids(Record):
    """Job ids."""

    ids: list[int]


class Checkpointed(Record):
    """`data` is given to the next attempt of the job; a `doubt` stays with it."""

    id: int
    data: bytes
    doubt: str = ""


class StateWritten(Record):
    """A connector's own state under `key`."""

    key: str
    version: int
    data: bytes


class Cursor(Record):
    """`consumer` has safely processed all rows up to `seq`."""

    consumer: str
    seq: int


class Operated(Record):
    """`drained` holds worker names, or `*` for all."""

    drained: list[str]


class Forgotten(Record):
    """What is past retention."""

    sessions: list[int] = []
    keys: list[str] = []
    dead: list[int] = []
    consumers: list[str] = []


class CarriedJob(Record):
    """The whole state of one unfinished or dead-lettered job. `ready_ns` is the wall time that its back-off ends at as
    the clocks lie now. `age_ns`, `ran_ns`: steady time since it was submitted, since this attempt began; None in rows
    of earlier versions, where only wall times tell."""

    id: int
    options: msgspec.Raw
    payload: Carried
    order: int
    submitted_ns: int
    state: int
    ready_ns: int = 0
    epoch: int = 0
    started_ns: int = 0
    holder: tuple[str, int] | None = None
    attempts: int = 0
    charges: tuple[int, int, int] = (0, 0, 0)
    key: str = ""
    checkpoint: bytes | None = None
    stop: str = ""
    error: JobError | None = None
    age_ns: int | None = None
    ran_ns: int | None = None
    died_ns: int = 0
    doubt: str = ""


class CarriedSession(Record):
    """The whole state of one session."""

    session: int
    token: bytes
    name: str
    frame_number: int
    next_job: int
    answers: list[tuple[int, list[Refusal], list[tuple[int, int]]]] = []


class CarriedKey(Record):
    """An idempotency key; `ended_ns` 0 while its job is unfinished."""

    key: str
    job: int
    fingerprint: bytes
    ended_ns: int


class Carry(Record):
    """What rows up to a trim point still had to say. `boot`, `sessions_opened`, `drained`, `next_epoch` and `clocks`
    (boot id, wall minus steady time) are always given."""

    boot: int
    sessions_opened: int
    drained: list[str]
    jobs: list[CarriedJob] = []
    sessions: list[CarriedSession] = []
    keys: list[CarriedKey] = []
    states: list[StateWritten] = []
    cursors: list[Cursor] = []
    next_epoch: int = 0
    clocks: tuple[str, int] | None = None


BODIES: dict[Kind, type[Record]] = {
    Kind.STARTED: Started,
    Kind.CLOCK: Clock,
    Kind.SESSION: SessionOpened,
    Kind.SUBMITTED: Submit,
    Kind.TAKEN: Taken,
    Kind.ASSIGNED: Assigned,
    Kind.RESULTS: Results,
    Kind.REQUEUED: Requeued,
    Kind.STOPPING: Stopping,
    Kind.RETRIED: Ids,
    Kind.CHECKPOINT: Checkpointed,
    Kind.STATE: StateWritten,
    Kind.CURSOR: Cursor,
    Kind.OPERATED: Operated,
    Kind.FORGOTTEN: Forgotten,
    Kind.CARRY: Carry,
}

_DECODERS = {kind: msgspec.msgpack.Decoder(body).decode for kind, body in BODIES.items()}
_encode = msgspec.msgpack.Encoder().encode
_decode_submit = msgspec.msgpack.Decoder(Submit).decode


class Fact(NamedTuple):
    """A row before it has bytes: what `decide` returns. `raw` is the body as it came, where it came as bytes."""

    kind: Kind
    body: Any
    origin: int = 0
    raw: bytes | None = None

    def encoded(self) -> bytes:
        """The body's bytes."""
        return _encode(self.body) if self.raw is None else self.raw


def decode_body(kind: int, body: bytes) -> Any:
    """The body of a journaled row. Raises ValueError (with the kind) when it is not one."""
    try:
        return _DECODERS[Kind(kind)](body)
    except (KeyError, msgspec.DecodeError) as error:
        raise ValueError(f"not the body of a row of kind {kind}: {error}") from None


def decode_submit(data: bytes) -> Submit:
    """The Submit frame inside a `Taken`."""
    return _decode_submit(data)
