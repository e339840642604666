"""A web process of its own for each test that asks for one, with a scripted broker beside it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from web_broker import BrokerDouble
from web_harness import Web


@pytest.fixture
def root() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="empd-", dir="/tmp"))
    (directory / "run").mkdir(mode=0o700)
    (directory / "state").mkdir(mode=0o700)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def broker(root: Path) -> Iterator[BrokerDouble]:
    double = BrokerDouble(f"ipc://{root}/run/empd.sock")
    double.start()
    yield double
    double.stop()


@pytest.fixture
def start_web(root: Path) -> Iterator[Callable[..., Web]]:
    running: list[Web] = []

    def start(**options: Any) -> Web:
        running.append(Web(root, options))
        return running[-1]

    yield start
    for web in running:
        web.stop()


@pytest.fixture
def web(broker: BrokerDouble, start_web: Callable[..., Web]) -> Web:
    return start_web()


@pytest.fixture(scope="module")
def module_web() -> Iterator[Web]:
    """One process for a whole module, for tests that only ask."""
    directory = Path(tempfile.mkdtemp(prefix="empd-", dir="/tmp"))
    (directory / "run").mkdir(mode=0o700)
    (directory / "state").mkdir(mode=0o700)
    double = BrokerDouble(f"ipc://{directory}/run/empd.sock")
    double.start()
    running = Web(directory, {"http_hosts": ["GPU.example.com"]})
    yield running
    running.stop()
    double.stop()
    shutil.rmtree(directory)
