"""Submit and result over real sockets."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_model import ModelBroker, serving

from empd.client import Client


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="empd-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def test_submit_and_result(folder: Path) -> None:
    with serving(folder, ModelBroker()) as double, Client(double.endpoint) as client:
        assert client.submit("square", {"x": 3}).result(5) == {"x": 3}
        assert client.submit_many("square", range(1000)).results(5) == list(range(1000))
