"""What may be lost: progress, logs, partial results and metric snapshots, pushed to the web process.

One PUSH socket per sender, one PULL socket (`telemetry.sock` in the runtime directory) in the web process;
senders never wait. Progress and partial results are coalesced to at most 10 a second for each job.
"""

from __future__ import annotations

from typing import Any

import msgspec


class JobProgress(msgspec.Struct, array_like=True, gc=False, tag=1):
    """How far a job is: `fraction` 0…1 (never falling within an epoch), optionally step of steps, a line of text."""

    id: int
    epoch: int
    at_ns: int
    fraction: float
    message: str = ""
    step: int = 0
    steps: int = 0


class JobLog(msgspec.Struct, array_like=True, gc=False, tag=2):
    """Lines that the job's attempt logged."""

    id: int
    epoch: int
    at_ns: int
    text: str


class JobPartial(msgspec.Struct, array_like=True, gc=False, tag=3):
    """A partial result."""

    id: int
    epoch: int
    at_ns: int
    encoding: str
    data: bytes


class Sample(msgspec.Struct, array_like=True, gc=False):
    """One metric series: name, label pairs, value. `kind`: counter, gauge, or histogram (`buckets`: upper bound →
    cumulative count; `value`: the sum)."""

    kind: str
    name: str
    labels: dict[str, str]
    value: float
    buckets: list[tuple[float, int]] = []


class Metrics(msgspec.Struct, array_like=True, gc=False, tag=4):
    """All series of one child. Counters restart at 0 with each generation; the receiver keeps them monotonic."""

    source: str
    generation: int
    samples: list[Sample]


class ServiceFacts(msgspec.Struct, array_like=True, gc=False, tag=5):
    """What one worker knows of one of its services: state, address, what its connector reports. The newest counts."""

    source: str
    generation: int
    service: str
    facts: dict[str, Any]


Telemetry = JobProgress | JobLog | JobPartial | Metrics | ServiceFacts
