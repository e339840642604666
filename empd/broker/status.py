"""The broker's picture of itself, for `status`."""

from __future__ import annotations

import os
from typing import Any

from empd.broker.ledger import Ledger
from empd.clock import Instant
from empd.queue import requests
from empd.queue.claims import EVERYONE, free_slots, nobody_takes
from empd.queue.machine import Queue
from empd.queue.state import Worker


def picture(queue: Queue, ledger: Ledger, counters: dict[str, int], now: Instant) -> dict[str, Any]:
    """Plain data: queues, workers, journal, and why a job would not be taken or run (`problems`, empty: it would)."""
    state = queue.state
    workers = [_worker(worker) for worker in state.workers.values()]
    return {
        "pid": os.getpid(),
        "boot": state.boot,
        "instance": ledger.journal.instance,
        "drained": sorted(state.drained),
        "jobs": {
            "unfinished": len(state.jobs) - state.dead,
            "dead": state.dead,
            "held": sum(len(worker.held) for worker in state.workers.values()),
            "payload_bytes": state.payload_bytes,
        },
        "services": _services(queue, now),
        "workers": workers,
        "journal": {
            "first_seq": ledger.journal.first_seq,
            "last_seq": ledger.journal.last_seq,
            "size_bytes": ledger.size_bytes,
            "free_bytes": ledger.free_bytes,
            "commits": ledger.commits,
            "trimmed_rows": ledger.trimmed_rows,
            "loss": ledger.journal.loss,
        },
        "consumers": {name: consumer.seq for name, consumer in state.consumers.items()},
        "counters": {**counters, "stale_completions": queue.stale_completions},
        "problems": problems(queue, ledger),
    }


def problems(queue: Queue, ledger: Ledger) -> list[str]:
    """Why a job submitted now would be refused or not run by anyone; empty when it would be."""
    state = queue.state
    found: list[str] = []
    if ledger.closed:
        found.append(ledger.closed)
    if len(state.jobs) >= queue.policy.queue_jobs_max:
        found.append(f"the queue is full (queue_jobs_max = {queue.policy.queue_jobs_max})")
    if state.payload_bytes >= queue.policy.queue_bytes_max:
        found.append(f"the queue's payloads are at their bound (queue_bytes_max = {queue.policy.queue_bytes_max})")
    if EVERYONE in state.drained:
        found.append("claims are drained; `empd resume` opens them")
    able = [w for w in state.workers.values() if w.connected and w.slots and w.queues and w.name not in state.drained]
    if not able:
        found.append("no worker takes jobs")
    return found


def _worker(worker: Worker) -> dict[str, Any]:
    return {
        "name": worker.name,
        "generation": worker.generation,
        "type": worker.worker_type,
        "pid": worker.pid,
        "connected": worker.connected,
        "slots": worker.slots,
        "held": len(worker.held),
        "jobs": sorted(worker.held)[:16],
        "reason": worker.reason,
        "device": worker.device,
        "services": {
            name: {"slots": offer.slots, "reason": offer.reason, "models": offer.models}
            for name, offer in worker.offers.items()
        },
    }


def _services(queue: Queue, now: Instant) -> dict[str, dict[str, Any]]:
    depths = requests.depths(queue.room)
    found: dict[str, dict[str, Any]] = {}
    for service in sorted(set(queue.policy.services) | set(depths)):
        waiting, oldest = depths.get(service, (0, 0))
        offers = [
            (worker, worker.offers[service])
            for worker in queue.state.workers.values()
            if worker.connected and service in worker.offers
        ]
        reasons = {offer.reason or worker.reason for worker, offer in offers} - {""}
        if service in queue.policy.services:
            reasons.update(nobody_takes(queue.state, service))
            if not offers and _only_on_gpus(queue, service):
                reasons.add("only GPU-bound workers offer it, one for each GPU of this box")
        else:
            reasons.add("no worker is configured for it any more")
        if waiting and not reasons and all(free_slots(queue.state, worker) <= 0 for worker, _ in offers):
            reasons.add("every worker that offers it is busy")
        found[service] = {
            "waiting": waiting,
            "oldest_age_s": max(now.wall_ns - oldest, 0) / 1e9 if oldest else 0.0,
            "workers": len(offers),
            "slots": sum(min(offer.slots, worker.slots) for worker, offer in offers),
            "reasons": sorted(reasons),
        }
    return found


def _only_on_gpus(queue: Queue, service: str) -> bool:
    """Whether all workers that are configured for it need a GPU: where there is none, none of them is started."""
    kinds = [kind for kind in queue.policy.classes if service in kind.services]
    return bool(kinds) and all(kind.open_ended for kind in kinds)
