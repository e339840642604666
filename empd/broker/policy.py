"""What settings and mapping say to the queue."""

from __future__ import annotations

from empd.clock import seconds_to_ns
from empd.mapping import Mapping
from empd.payload import INLINE_BYTES_MAX
from empd.queue.policy import Policy, ServicePolicy, WorkerClass
from empd.settings import Settings


def queue_policy(settings: Settings, mapping: Mapping) -> Policy:
    """The queue's limits, budgets and the classes of workers that are configured."""
    return Policy(
        services={job_type: _service_policy(settings, mapping, job_type) for job_type in mapping.job_types()},
        classes=tuple(
            WorkerClass(tuple(worker.routes()), dict(worker.capabilities), open_ended=worker.is_gpu_bound)
            for worker in mapping.workers.values()
        ),
        queue_jobs_max=settings.queue_jobs_max,
        queue_bytes_max=settings.queue_bytes_max,
        inline_bytes_max=INLINE_BYTES_MAX,
        idempotency_keys_max=settings.idempotency_keys_max,
        idempotency_keep_ns=seconds_to_ns(settings.idempotency_keep_s),
        session_keep_ns=seconds_to_ns(settings.idempotency_keep_s),
        dead_keep_ns=seconds_to_ns(settings.dead_keep_s),
        dead_jobs_max=settings.dead_jobs_max,
        unmatchable_keep_ns=seconds_to_ns(settings.unmatchable_keep_s),
        max_crashes=settings.max_crashes,
        max_host_losses=settings.max_host_losses,
        backoff_ns=seconds_to_ns(settings.backoff_s),
        backoff_max_ns=seconds_to_ns(settings.backoff_max_s),
        stop_grace_ns=seconds_to_ns(settings.cancel_grace_s),
    )


def _service_policy(settings: Settings, mapping: Mapping, job_type: str) -> ServicePolicy:
    limits = mapping.run_limits(job_type)
    return ServicePolicy(
        timeout_ns=seconds_to_ns(settings.timeout_s if limits.timeout_s is None else limits.timeout_s),
        retries=settings.retries if limits.retries is None else limits.retries,
    )
