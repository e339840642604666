"""Decides which waiting jobs go to which worker.

Deciding and evolving take turns here, since each choice changes what the next one sees; the result is one fact for
each worker, with all its jobs.
"""

from __future__ import annotations

from typing import NamedTuple

from empd.job import AssignedJob, AssignGroup, State
from empd.queue import rows
from empd.queue.evolve import Evolver
from empd.queue.room import AskQueue, Group
from empd.queue.rows import Fact, Kind
from empd.queue.state import Job, Options, QueueState, Worker

EVERYONE = "*"
CLAIM_BYTES_MAX = 768 * 1024
"""Bytes of jobs that one claim carries, so that its frame stays below the limit."""
NAMED_MAX = 4
"""Workers that a reason names."""


MODEL_WINDOW = 64
"""So many jobs of a line are looked at for one whose models a worker has loaded."""
OVERTAKEN_MAX = 16
"""So many may go before the first job of a line for that; then it is its turn, wherever that may be."""


class Claim(NamedTuple):
    """Jobs for one worker: the fact (already evolved) and what the worker is sent."""

    worker: Worker
    fact: Fact
    groups: list[AssignGroup]


def free_slots(state: QueueState, worker: Worker) -> int:
    """How many more jobs the worker may be given now."""
    if not worker.connected or worker.abandoning or not worker.queues:
        return 0
    if state.drained and (EVERYONE in state.drained or worker.name in state.drained):
        return 0
    return worker.slots - len(worker.held)


def claim(evolver: Evolver, worker: Worker, at_ns: int, *, loaded: bool = False) -> Claim | None:
    """Gives the worker as many jobs as it has slots for, best first; None when there are none for it.

    `loaded`: only jobs that name models which the worker has loaded, from among the first of the best line.
    """
    for _, queue in worker.queues:
        if queue.heap:
            break
    else:
        return None  # as in most passes, for most workers
    state = evolver.state
    free = free_slots(state, worker)
    if free <= 0:
        return None
    first_epoch = state.next_epoch
    taken: list[Job] = []
    size = 0
    limits = _service_limits(worker)
    while free > 0 and size < CLAIM_BYTES_MAX:
        run = _next_loaded(worker, limits) if loaded else _next_run(worker, free, limits)
        if not run:
            break
        run, size = _within(run, size)
        if not run:
            break
        if limits:
            limits[run[0].options.spec.service] -= len(run)
        evolver.attempts.assign(worker, run, state.next_epoch, at_ns)
        taken += run
        free -= len(run)
    if not taken:
        return None
    ids = [job.id for job in taken]
    fact = Fact(Kind.ASSIGNED, rows.Assigned(worker.name, worker.generation, first_epoch, ids))
    return Claim(worker, fact, _groups(taken))


def _service_limits(worker: Worker) -> dict[str, int]:
    """Free slots by service; empty when no service has fewer slots than the worker."""
    if not worker.limited:
        return {}
    limits = {service: offer.slots for service, offer in worker.offers.items()}
    for job in worker.held.values():
        service = job.options.spec.service
        if service in limits:  # else it is offered no more
            limits[service] -= 1
    return limits


def _next_loaded(worker: Worker, limits: dict[str, int]) -> list[Job]:
    chosen, _ = _best(worker, limits)
    group: Group | None = None if chosen is None else chosen.best_group()
    if chosen is None or group is None or not group.wants_models:
        return []
    models = set(worker.offers[chosen.service].models)
    line = group.first(MODEL_WINDOW, None)
    for job in line:
        wanted = job.options.spec.model_keys
        if wanted and models.issuperset(wanted):
            group.overtaken = 0 if job is line[0] else group.overtaken + 1
            return [] if group.overtaken > OVERTAKEN_MAX else [job]
    return []


def _next_run(worker: Worker, free: int, limits: dict[str, int]) -> list[Job]:
    chosen, rival = _best(worker, limits)
    if chosen is None:
        return []
    if limits:
        free = min(free, limits[chosen.service])
    run: list[Job] = chosen.run(free, rival)
    if run:
        run[0].options.group.overtaken = 0
    return run


def _best(worker: Worker, limits: dict[str, int]) -> tuple[AskQueue | None, tuple[int, int] | None]:
    """The queue to take from, and the key of the next best one."""
    best = rival = None
    chosen: AskQueue | None = None
    for service, queue in worker.queues:
        if limits and limits[service] <= 0:
            continue
        key = queue.best()
        if key is None:
            continue
        if best is None or key < best:
            best, rival, chosen = key, best, queue
        elif rival is None or key < rival:
            rival = key
    return chosen, rival


def _within(run: list[Job], size: int) -> tuple[list[Job], int]:
    options: Options | None = None
    for index, job in enumerate(run):
        payload = job.payload
        size += len(payload) + 64 if type(payload) is bytes else 128
        if job.options is not options:
            options = job.options
            size += len(options.raw)
        if job.extra is not None and job.extra.checkpoint is not None:
            size += len(job.extra.checkpoint)
        if size > CLAIM_BYTES_MAX and index:
            return run[:index], size
    return run, size


def _groups(jobs: list[Job]) -> list[AssignGroup]:
    groups: list[AssignGroup] = []
    options: Options | None = None
    batch: list[AssignedJob] = []
    for job in jobs:
        if job.options is not options:
            options = job.options
            batch = []
            groups.append(AssignGroup(options.raw, options.timeout_ns / 1e9, batch))
        extra = job.extra
        checkpoint = extra.checkpoint if extra is not None else None
        batch.append(AssignedJob(job.id, job.epoch, job.payload, job.attempts, checkpoint))
    return groups


def waiting_reason(state: QueueState, job: Job) -> str:
    """Why a job waits, in words for people."""
    if job.state is State.DELAYED:
        return "back-off after a failure" if job.extra and job.extra.ready_ns else "not before its time"
    spec = job.options.spec
    nobody = nobody_takes(state, spec.service)
    if nobody:
        return "; ".join(nobody)
    queue_ids = {id(queue) for queue in job.options.group.queues}
    offering = (w for w in state.workers.values() if w.connected and spec.service in w.offers)
    if not any(id(queue) in queue_ids for worker in offering for _, queue in worker.queues):
        return "no connected worker meets the requirements"
    return "every worker that could run it is busy"


def nobody_takes(state: QueueState, service: str) -> list[str]:
    """Why no worker takes jobs of the service, in words for people; empty when one does, be it busy now."""
    if EVERYONE in state.drained:
        return ["claims are drained; `empd resume` opens them"]
    offers = [(w, w.offers[service]) for w in state.workers.values() if w.connected and service in w.offers]
    if not offers:
        return [f"no connected worker offers {service}"]
    drained: list[str] = []
    reasons: set[str] = set()
    for worker, offer in offers:
        if worker.name in state.drained:
            drained.append(worker.name)
        elif offer.slots and worker.slots:
            return []
        else:
            reasons.add(offer.reason or worker.reason)
    if drained:
        others = f" and {len(drained) - NAMED_MAX} more" if len(drained) > NAMED_MAX else ""
        reasons.add(f"{', '.join(sorted(drained)[:NAMED_MAX])}{others} drained; `empd resume` lets them go on")
    return sorted(reasons - {""}) or ["every worker that offers the service is paused"]
