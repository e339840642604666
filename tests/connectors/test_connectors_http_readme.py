"""The README's HTTP connectors: the tutorial and the mappings run as written, against the simulated service."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from test_connectors_readme import BLOCKS, README, connector_of, modules, processed

from empd.connectors.base import Result
from empd.connectors.failures import InvalidInput, ServiceUnavailable
from empd.connectors.simulator.http import SimulatedHTTP
from empd.connectors.simulator.wishes import Wish

__all__ = ["modules"]  # a fixture

FIRST_CALL = re.compile(r"^empd submit (\w+) '(.*)' --wait$", re.MULTILINE)


def with_simulation(use: Callable[[SimulatedHTTP], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        server = SimulatedHTTP()
        await server.start()
        try:
            return await use(server)
        finally:
            await server.close()

    return asyncio.run(run())


async def outcome(server: SimulatedHTTP, name: str, payload: Any) -> Any:
    """The result of one job of a service of the README; only its address is another."""
    connector = connector_of(name, {"base_url": server.url})
    assert await connector.start(), connector.reason
    try:
        return await processed(connector, payload)
    finally:
        await connector.stop()


def test_the_tutorials_connector_runs_as_written(modules: Path) -> None:
    async def use(server: SimulatedHTTP) -> None:
        result, port = await outcome(server, "painter", {"prompt": "sea", "steps": 3})
        assert result == Result({"picture_of": "sea"}, usage={"steps": 3})
        assert ("log", "painted steps=3", True) in port.said
        for payload in ({}, {"prompt": "sea", "steps": 1000}):
            with pytest.raises(InvalidInput):
                await outcome(server, "painter", payload)
        server.work.restart()  # the tests' jobs have one id, and with it one idempotency key
        faults = {"error_body": True, "times": 2}
        result, _ = await outcome(server, "painter", {"prompt": "sky", "faults": faults})
        assert result.value == {"picture_of": "sky"}
        with pytest.raises(ServiceUnavailable, match="asleep"):
            await outcome(server, "painter", {"prompt": "sky", "faults": {"error_body": True}})
        assert server.work.requests["POST /process"] == 1 + 3 + 4
        connector = connector_of("painter", {"base_url": server.url})
        await connector.open()
        assert await connector.service_info() == {"health": "ok"}
        await connector.close()

    with_simulation(use)


def test_the_tutorials_connector_is_short() -> None:
    (source,) = [text for kind, text in BLOCKS if kind == "python" and text.startswith("# painter.py")]
    assert len(source.splitlines()) <= 150


def test_the_jobs_of_the_generic_connectors_run_as_written() -> None:
    expected = {
        "ask": "why?",
        "render": {"steps": 1, "echo": {"scene": "sea"}},
        "tell": "piece 1 piece 2 piece 3 ",
    }
    jobs = {name: json.loads(shlex.split(f"'{payload}'")[0]) for name, payload in FIRST_CALL.findall(README)}
    jobs = {name: jobs[name] for name in expected}

    async def use(server: SimulatedHTTP) -> None:
        for name, payload in jobs.items():
            server.work.restart()
            result, _ = await outcome(server, name, payload)
            assert result == expected[name], name
        task = server.work.submit({"x": 1}, Wish(steps=3), "", 0.0)
        result, _ = await outcome(server, "follow", {"id": task.id})
        assert result["status"] == "completed"

    with_simulation(use)
