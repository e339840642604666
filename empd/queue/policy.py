"""What the operator's settings and mapping say to the queue: limits, budgets, and who could run what."""

from __future__ import annotations

from typing import Any

import msgspec

from empd.clock import NS_PER_S


class ServicePolicy(msgspec.Struct, frozen=True):
    """Limits of one job type. 0: no limit."""

    timeout_ns: int = 1800 * NS_PER_S
    retries: int = 3


class WorkerClass(msgspec.Struct, frozen=True):
    """A kind of worker that the configuration knows: the job types it serves and its static capabilities.

    `open_ended` is set where workers report further capabilities at run time (GPU model, memory), so that a
    requirement on a key not named here may still be met.
    """

    services: tuple[str, ...]
    capabilities: dict[str, Any]
    open_ended: bool = True


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """All that `decide` needs beside the state."""

    services: dict[str, ServicePolicy]
    classes: tuple[WorkerClass, ...] = ()
    queue_jobs_max: int = 5_000_000
    queue_bytes_max: int = 4 << 30
    inline_bytes_max: int = 64 * 1024
    idempotency_keys_max: int = 1_000_000
    idempotency_keep_ns: int = 86_400 * NS_PER_S
    session_keep_ns: int = 86_400 * NS_PER_S
    dead_keep_ns: int = 30 * 86_400 * NS_PER_S
    dead_jobs_max: int = 100_000
    unmatchable_keep_ns: int = 86_400 * NS_PER_S
    max_crashes: int = 2
    max_host_losses: int = 3
    backoff_ns: int = NS_PER_S
    backoff_max_ns: int = 60 * NS_PER_S
    stop_grace_ns: int = 10 * NS_PER_S
    checkpoint_bytes_max: int = 64 * 1024
    states_max: int = 100_000


def backoff_delay_ns(policy: Policy, failures: int, job_id: int) -> int:
    """The wait before attempt `failures` + 1: doubling, bounded, with 0–25 % jitter taken from the job's id, so
    that replay and simulation see the same one."""
    base = min(policy.backoff_ns << min(failures - 1, 40), policy.backoff_max_ns) if failures > 0 else 0
    spread = (job_id * 0x9E3779B97F4A7C15 + failures * 0xD1B54A32D192ED03 >> 13) & 1023
    return base + base * spread // 4096
