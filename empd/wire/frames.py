"""Every frame of the protocol, in one place. PROTOCOL.md describes them for writers of other clients.

A frame is one ZeroMQ message part: a msgpack array whose first element is the tag, the fields following in
the order written here. New fields are only appended, with defaults; a field never changes its type.

A *job group* shares one `JobOptions` among many payloads, so that a batch costs its payloads and little more;
inside the daemon the options travel as the raw bytes that the client sent.

The nouns that frames carry (options, groups, results) live in empd/job.py and empd/result.py, since the journal
and the queue speak of them too; they are named here as well, so that this module is the whole protocol.
"""

from __future__ import annotations

from typing import Any

from empd.job import AssignedJob as AssignedJob
from empd.job import AssignGroup as AssignGroup
from empd.job import JobFilter as JobFilter
from empd.job import JobGroup as JobGroup
from empd.job import JobOptions as JobOptions
from empd.job import Submit as Submit
from empd.record import Record
from empd.result import DoneJob as DoneJob
from empd.result import FailedJob as FailedJob
from empd.result import FinishedGroup as FinishedGroup
from empd.result import FinishedJob as FinishedJob
from empd.result import JobError as JobError
from empd.result import JobStatus as JobStatus
from empd.result import Refusal as Refusal
from empd.result import Results as Results

VERSION = 1
Frame = Record


# --- client → broker ---------------------------------------------------------------------------------------------


class ClientHello(Frame, tag=1):
    """First frame of a connection. `session` 0 asks for a new one; else `token` proves that it is this client's.
    `renew`: its job numbers come to their end and nothing of it is unanswered; a new session takes its place."""

    version: int
    session: int = 0
    token: bytes = b""
    name: str = ""
    renew: bool = False


class Ask(Frame, tag=3):
    """Asks for the state or the result of jobs. Answered by `Results` and `States`. `ended_only`: of those that have
    not ended nothing is said."""

    request: int
    ids: list[int]
    ended_only: bool = False


class Cancel(Frame, tag=4):
    """Cancels jobs by id, or (ids empty) by filter; `dry_run` only tells which."""

    request: int
    ids: list[int]
    filter: JobFilter | None = None
    dry_run: bool = False


class Retry(Frame, tag=5):
    """Gives dead-lettered jobs another chance, by id or by filter."""

    request: int
    ids: list[int]
    filter: JobFilter | None = None
    dry_run: bool = False


class List(Frame, tag=6):
    """Unfinished (and dead-lettered) jobs. Answered by `Reply` with `{"jobs": [...], "cursor": n | None}`."""

    request: int
    filter: JobFilter


class Status(Frame, tag=7):
    """Asks for the broker's picture of queues, workers and itself. Answered by `Reply`. `blobs`: ids, of which the
    answer's `blobs` names those that unfinished jobs refer to."""

    request: int
    blobs: list[str] = []


class Operate(Frame, tag=8):
    """An operator's verb: `drain`, `resume`, `reload`, `stop`. `workers` empty: all."""

    request: int
    verb: str
    workers: list[str] = []


class Subscribe(Frame, tag=9):
    """Journal rows from `from_seq` on, as `Rows` frames. A named `consumer` has a cursor that trimming waits for;
    `window` frames are sent ahead of `CursorAck`. `kinds`: only rows of these kinds (empty: all)."""

    consumer: str
    from_seq: int
    window: int = 16
    kinds: list[int] = []


class CursorAck(Frame, tag=10):
    """The consumer has safely processed all rows up to `seq`."""

    consumer: str
    seq: int


class Bye(Frame, tag=11):
    """The connection ends. `forget`: the session too, its jobs go on and nobody will ask."""

    forget: bool = False


# --- broker → client ---------------------------------------------------------------------------------------------


class Welcome(Frame, tag=32):
    """Answer to `ClientHello`. `numbers`: the highest Submit frame number and `first + count` taken so far."""

    version: int
    session: int
    token: bytes
    instance: str  # random id of the state directory, 32 hex digits
    boot: int
    frame_number: int
    next_job: int
    frame_bytes_max: int
    inline_bytes_max: int
    host: str  # machine id + boot id: equal on the same host, where the arena can be used
    spool_dir: str
    volatile_dir: str
    sync_blobs: bool = True  # False: an acknowledged job need not survive a power loss, so its blobs are not fsynced


class Accepted(Frame, tag=33):
    """Submit frame `number` is durable, but for the jobs refused. `existing`: (index, id) of jobs that an
    idempotency key already named; the id given stands for the job."""

    number: int
    refused: list[Refusal] = []
    existing: list[tuple[int, int]] = []


class States(Frame, tag=35):
    """Answer to `Ask`, for jobs that have no result yet; where only the ended were asked for, those that are unknown.
    Sent once per `Ask`, after its `Results`."""

    request: int
    jobs: list[JobStatus]


class Reply(Frame, tag=36):
    """Answer to a numbered request."""

    request: int
    body: Any


class Error(Frame, tag=37):
    """What was wrong with a frame. `request` 0: with a frame that had no number, or was no frame."""

    request: int
    failure: str
    message: str


class Rows(Frame, tag=38):
    """Journal rows for a subscriber: (seq, at_ns, kind, origin, body), `body` as journaled."""

    consumer: str
    rows: list[tuple[int, int, int, int, bytes]]


class Reset(Frame, tag=39):
    """The rows asked for are trimmed: drop what you hold and take `first_seq` as the beginning. The journal from
    there on (its `Carry` rows included) is the snapshot."""

    consumer: str
    first_seq: int


class Resync(Frame, tag=40):
    """Something for this client was not sent (it was slow, or the broker restarted): `Ask` for what is open."""


# --- worker → broker ---------------------------------------------------------------------------------------------


class ServiceOffer(Frame):
    """What a worker offers for one job type. `slots`: how many at once; 0 with the reason while it cannot."""

    service: str
    slots: int
    reason: str = ""
    models: list[str] = []


class WorkerHello(Frame, tag=64):
    """First frame of a worker's connection. `held`: (id, epoch) of every job it holds or whose outcome the broker
    has not settled. `slots`: jobs at once over all services."""

    version: int
    name: str
    generation: int
    worker_type: str
    slots: int
    offers: list[ServiceOffer]
    held: list[tuple[int, int]]
    capabilities: dict[str, Any]
    device: dict[str, Any] | None = None
    pid: int = 0


class Capacity(Frame, tag=65):
    """The worker's slots or offers changed (health, drain, recycle, models). `reason` when it takes nothing."""

    slots: int
    offers: list[ServiceOffer]
    reason: str = ""


class Done(Frame, tag=66):
    """Outcomes of attempts. `number` counts the worker's Done frames from 1; kept until they are settled."""

    number: int
    done: list[DoneJob]
    failed: list[FailedJob] = []
    cancelled: list[tuple[int, int]] = []


class Checkpoint(Frame, tag=67):
    """State that the next attempt gets, ≤ 64 KiB. `doubt`: what may have been done twice because of this attempt; it
    stays with the job. Answered by `Stored`."""

    request: int
    id: int
    epoch: int
    data: bytes
    doubt: str = ""


class StateSet(Frame, tag=68):
    """Sets a connector's own state, fenced by the job that asks. `expected_version` 0: it must not exist yet.
    Answered by `Stored`, or `Error` with `refused` when the version or the epoch is stale."""

    request: int
    id: int
    epoch: int
    key: str
    expected_version: int
    data: bytes


class StateGet(Frame, tag=69):
    """Reads a connector's own state. Answered by `StateValue`."""

    request: int
    key: str


class Abandoned(Frame, tag=70):
    """The worker has stopped these (id, epoch) and will say nothing more of them."""

    jobs: list[tuple[int, int]]


# --- broker → worker ---------------------------------------------------------------------------------------------


class WorkerWelcome(Frame, tag=96):
    """Answer to `WorkerHello`. The jobs in `abandon` are not this worker's: stop them and send `Abandoned`."""

    version: int
    boot: int
    instance: str
    abandon: list[tuple[int, int]] = []


class Assign(Frame, tag=97):
    """Run these. Done frames up to `settled` (0: none) are durable, as `Settled` says it."""

    groups: list[AssignGroup]
    settled: int = 0


class Stop(Frame, tag=98):
    """Stop this job. `failure`: `cancelled` or `timeout`. Answer with a `Done` frame when the work has stopped."""

    id: int
    epoch: int
    failure: str


class Abandon(Frame, tag=99):
    """These (id, epoch) are no longer this worker's: stop them, send `Abandoned`."""

    jobs: list[tuple[int, int]]


class Settled(Frame, tag=100):
    """Done frames up to `number` are durable."""

    number: int


class Stored(Frame, tag=101):
    """A checkpoint or state is durable. `version`: of the state."""

    request: int
    version: int = 0


class StateValue(Frame, tag=102):
    """Answer to `StateGet`; version 0: there is none."""

    request: int
    version: int
    data: bytes


ClientFrame = ClientHello | Submit | Ask | Cancel | Retry | List | Status | Operate | Subscribe | CursorAck | Bye
BrokerToClient = Welcome | Accepted | Results | States | Reply | Error | Rows | Reset | Resync
WorkerFrame = WorkerHello | Capacity | Done | Checkpoint | StateSet | StateGet | Abandoned
BrokerToWorker = WorkerWelcome | Assign | Stop | Abandon | Settled | Stored | StateValue | Error


# --- history's read socket (web process) -------------------------------------------------------------------------


class HistoryAsk(Frame, tag=128):
    """Asks history for ended jobs. Answered by `HistoryAnswer`."""

    request: int
    ids: list[int]


class HistoryAnswer(Frame, tag=129):
    """`through_seq`: history holds all that ended up to this journal row. An id in neither list is not (or no
    longer) known; `expired`: ended, but its record is past retention."""

    request: int
    through_seq: int
    groups: list[FinishedGroup]
    expired: list[int] = []


HistoryFrame = HistoryAsk | HistoryAnswer
