"""Brokers for the tests that play everything around them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from broker_process import RawBroker


@pytest.fixture
def make_broker() -> Iterator[Callable[..., RawBroker]]:
    """Starts brokers: `make_broker(**settings)`."""
    with contextlib.ExitStack() as stack:

        def make(**settings: Any) -> RawBroker:
            made = RawBroker(**settings)
            stack.callback(made.close)
            made.start()
            return made

        yield make


@pytest.fixture
def broker(make_broker: Callable[..., RawBroker]) -> RawBroker:
    """A broker that serves."""
    return make_broker()
