"""A short directory for sockets."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """An own directory whose socket paths stay below the limit of Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="empd-", dir="/tmp"))
    yield path
    shutil.rmtree(path)
