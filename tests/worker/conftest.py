"""Fixtures of the worker's tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from worker_broker import BrokerDouble, WorkerProcess


@pytest.fixture
def broker() -> Iterator[BrokerDouble]:
    directory = Path(tempfile.mkdtemp(prefix="empd-", dir="/tmp"))
    double = BrokerDouble(directory)
    yield double
    double.close()
    shutil.rmtree(directory)


@pytest.fixture
def start(broker: BrokerDouble) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers: `start(services, slots=1, **spec)`; `services`: name → service entry of the mapping."""
    started: list[WorkerProcess] = []

    def begin(services: dict[str, Any], slots: int = 1, **spec: Any) -> WorkerProcess:
        worker = {"services": list(services), "max_concurrent_jobs": slots, **spec.pop("worker", {})}
        mapping = {"workers": {"w": worker}, "services": services, "connectors": spec.pop("connectors", {})}
        started.append(WorkerProcess(broker, mapping, **spec))
        return started[-1]

    yield begin
    for process in started:
        process.close()
