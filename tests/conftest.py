"""Fixtures for tests of the whole daemon: real processes in a directory of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.box import Box


@pytest.fixture
def box() -> Iterator[Callable[..., Box]]:
    """Makes daemons: `box(mapping, **settings)` gives one that is ready. All are stopped at the test's end, and
    what they left running is a failure."""
    with contextlib.ExitStack() as stack:

        def start(mapping: dict[str, Any] | None = None, **settings: Any) -> Box:
            return stack.enter_context(Box(mapping, **settings))

        yield start
