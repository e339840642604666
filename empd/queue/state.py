"""All that the queue knows: jobs, who holds them, sessions, keys, the state of connectors, cursors.

`evolve` alone writes the facts in here. What is derived (the waiting room, deadlines) may be rebuilt from them.

Memory per waiting job is what bounds a backlog, so a `Job` holds only what nearly every job needs; the rest is in
`Extra`, made when the first such thing happens, and what jobs share lies once in `Options`.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Any

import msgspec

from empd.job import JobOptions, State
from empd.payload import BlobRef, Carried
from empd.result import JobError, Refusal


class Options(msgspec.Struct, gc=False):
    """One client's words about its jobs (`raw`), decoded once, with what follows from them. 0: no limit."""

    raw: msgspec.Raw
    spec: JobOptions
    group: Any  # room.Group
    timeout_ns: int
    queue_timeout_ns: int
    total_timeout_ns: int
    not_before_ns: int
    retries: int
    problem: tuple[str, str] | None = None  # (failure class, reason) or ("", ""), once judged


class Extra(msgspec.Struct, gc=False):
    """What only some jobs have. `charges`: attempts charged to the job, to crashes, to lost hosts. `ready_ns`: steady
    time before which it does not run again. `stop`: why its holder is being stopped. `died_ns`: wall time of its
    death. `doubt`: what may have been done twice for it."""

    charges: tuple[int, int, int] = (0, 0, 0)
    ready_ns: int = 0
    key: str = ""
    checkpoint: bytes | None = None
    stop: str = ""
    error: JobError | None = None
    died_ns: int = 0
    doubt: str = ""


class Job(msgspec.Struct, gc=False):
    """An unfinished or dead-lettered job. `order`: the journal row that brought it, which is its place in the line.
    `touched`: the last row that has to stay for it. Wall times in ns, but steady: `submitted_mono_ns`, which its limits
    are counted from, and `limit_ns`, the end of this run."""

    id: int
    options: Options
    payload: Carried
    order: int
    touched: int
    submitted_ns: int
    submitted_mono_ns: int
    state: State = State.WAITING
    attempts: int = 0
    epoch: int = 0
    started_ns: int = 0
    limit_ns: int = 0
    holder: Any = None  # Worker
    extra: Extra | None = None


def doubt_of(job: Job) -> str:
    """What may have been done twice for it."""
    return "" if job.extra is None else job.extra.doubt


def extra_of(job: Job) -> Extra:
    """The job's `Extra`, made now if it had none."""
    if job.extra is None:
        job.extra = Extra()
    return job.extra


class Worker:
    """One worker incarnation. `held` is a fact; the rest is what it said of itself since it connected."""

    __slots__ = (
        "abandoning", "capabilities", "connected", "device", "generation", "held", "limit_ns", "limited",
        "loaded", "name",
        "offers", "pid", "queues", "reason", "slots", "worker_type",
    )  # fmt: skip

    def __init__(self, name: str, generation: int) -> None:
        self.name = name
        self.generation = generation
        self.held: dict[int, Job] = {}
        self.limit_ns = 0  # a lower bound of the held jobs' limits; 0: none
        self.connected = False
        self.worker_type = ""
        self.pid = 0
        self.slots = 0
        self.reason = ""
        self.offers: dict[str, Offer] = {}
        self.limited = False  # a service has fewer slots than the worker
        self.loaded = False  # it has told of models
        self.queues: list[tuple[str, Any]] = []  # (service, room.AskQueue) of what it takes now
        self.capabilities: dict[str, Any] = {}
        self.device: dict[str, Any] | None = None
        self.abandoning: set[tuple[int, int]] = set()

    @property
    def key(self) -> tuple[str, int]:
        """(name, generation): the incarnation."""
        return self.name, self.generation


class Offer(msgspec.Struct):
    """One job type that a worker takes: how many at once, why not, which models it has loaded."""

    slots: int
    reason: str = ""
    models: list[str] = []


class Session(msgspec.Struct):
    """A client session. `answers`: what was refused or already existed in recent frames, to say it again.
    `skipped`: frames refused whole since the session's last row."""

    number: int
    token: bytes
    name: str
    frame_number: int = 0
    next_job: int = 1
    touched: int = 0
    seen_mono_ns: int = 0
    answers: dict[int, tuple[list[Refusal], list[tuple[int, int]]]] = {}
    skipped: list[tuple[int, list[Refusal]]] = []


class Key(msgspec.Struct, gc=False):
    """An idempotency key. `ended_ns` (wall) 0 while its job is unfinished."""

    job: int
    fingerprint: bytes
    ended_ns: int
    touched: int


class ConnectorState(msgspec.Struct, gc=False):
    """A connector's own state."""

    version: int
    data: bytes
    touched: int


class Consumer(msgspec.Struct, gc=False):
    """A consumer of the event stream: rows up to `seq` are processed. `touched`: the row that said so."""

    seq: int
    touched: int


class QueueState:
    """Everything. `jobs`, `sessions`, `keys` and `connector_states` are kept in the order of `touched`, which is what
    trimming walks along; jobs of one row in the order of their ids, which is what listing goes on by."""

    def __init__(self) -> None:
        self.boot = 0
        self.boot_id = ""
        self.wall_minus_mono_ns = 0
        self.at_ns = 0  # wall time of the newest row
        self.next_epoch = 0
        self.sessions_opened = 0
        self.seq = 0
        self.jobs: dict[int, Job] = {}
        self.workers: dict[tuple[str, int], Worker] = {}
        self.sessions: dict[int, Session] = {}
        self.open_jobs: dict[int, int] = {}  # session → its unfinished (and dead-lettered) jobs
        self.keys: dict[str, Key] = {}
        self.connector_states: dict[str, ConnectorState] = {}
        self.consumers: dict[str, Consumer] = {}
        self.drained: frozenset[str] = frozenset()
        self.payload_bytes = 0
        self.dead = 0
        self.blobs: dict[str, int] = {}  # blob id → unfinished jobs that refer to it
        self.released: list[BlobRef] = []  # blobs that no unfinished job refers to any more; the shell takes them
        self.recent: dict[int, int] = {}  # ended job → its RESULTS row, until history has it
        self.recent_rows: deque[tuple[int, list[int]]] = deque()
        # Derived: the shell's tick moves jobs from here to the room, or ends them.
        # An entry counts only for the attempt that it was made after: replay does not see when a delay was over.
        self.due_wall: list[tuple[int, int, int]] = []  # heap (wall ns, job id, attempts): not_before
        self.due_mono: list[tuple[int, int, int]] = []  # heap (steady ns, job id, attempts): back-off
        self.deadlines: list[tuple[int, int, str]] = []  # heap (steady ns, job id, "queue" | "total")
        self.graces: list[tuple[int, int, int]] = []  # heap (steady ns, job id, epoch): told to stop
        # What retention comes to in turn; entries count as long as they say what is so.
        self.silences: list[tuple[int, int]] = []  # heap (steady ns it was seen at, session)
        self.ended_keys: list[tuple[int, list[str]]] = []  # heap (wall ns, keys whose jobs ended then)
        self.deaths: list[tuple[int, int]] = []  # heap (wall ns, dead-lettered job)


def worker_of(state: QueueState, name: str, generation: int) -> Worker:
    """The record of a worker incarnation, made now if there was none."""
    worker = state.workers.get((name, generation))
    if worker is None:
        worker = state.workers[name, generation] = Worker(name, generation)
    return worker


def bury(state: QueueState, job: Job, died_ns: int) -> None:
    """The job is a dead letter, since this wall time."""
    job.state = State.DEAD
    extra_of(job).died_ns = died_ns
    state.dead += 1
    heapq.heappush(state.deaths, (died_ns, job.id))


def take_released(state: QueueState) -> list[BlobRef]:
    """Blobs that no unfinished job refers to any more, each once. A job that came after the last one ended (or, in a
    replay, was carried past it) may refer to one again."""
    released, state.released = state.released, []
    return [blob for blob in released if blob.id not in state.blobs]


def steady_ns(state: QueueState, at_ns: int) -> int:
    """The steady time of a wall time, by the newest row that tied the two."""
    return at_ns - state.wall_minus_mono_ns


def clocks(state: QueueState) -> tuple[str, int] | None:
    """How the clocks lie, for a row: (boot id, wall minus steady time); None while no row has said it."""
    return (state.boot_id, state.wall_minus_mono_ns) if state.boot_id else None


def count_open(state: QueueState, session_number: int, change: int) -> None:
    """A session has so many more unfinished jobs."""
    count = state.open_jobs.get(session_number, 0) + change
    if count > 0:
        state.open_jobs[session_number] = count
    else:
        state.open_jobs.pop(session_number, None)
