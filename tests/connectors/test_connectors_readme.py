"""The room's README: its code runs as written, and it names what exists."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_connectors_seam import Port

from empd.connectors import base, failures, plugins, registry
from empd.connectors.base import Site
from empd.connectors.context import Context, JobDetails, JobView, SyncContext
from empd.mapping import Mapping

ROOM = Path(__file__).resolve().parents[2] / "empd" / "connectors"
README = (ROOM / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
MAPPINGS = [json.loads(text) for kind, text in BLOCKS if kind == "json"]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch) -> Path:
    """The README's Python blocks as files that can be imported."""
    for kind, text in BLOCKS:
        if kind == "python":
            name = text.splitlines()[0].removeprefix("# ")
            (tmp_path / name).write_text(text)
            monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def connector_of(name: str, change: dict[str, Any]) -> base.Service:
    raw = next(mapping for mapping in MAPPINGS if name in mapping["services"])
    raw["services"][name]["api_config"].update(change)
    mapping = Mapping.from_dict(raw, {})
    service = mapping.services[name]
    kind = registry.load_class(service.connector, mapping.connector_path(service.connector) or None)
    built = registry.build(kind, service.api_config, Site(service=name, max_concurrent_jobs=mapping.slots("cpu", name)))
    assert isinstance(built, base.Service)
    return built


async def processed(connector: base.Service, payload: Any) -> tuple[Any, Port]:
    port = Port()
    job = JobView(1, 1, 1, JobDetails(service="s"), msgspec.msgpack.encode(payload))
    return await connector.process(job, Context(port, job, 0)), port


def test_the_function_runs_as_written(modules: Path) -> None:
    async def run() -> None:
        connector = connector_of("squeeze", {})
        assert await connector.start(), connector.reason
        data = b"abc" * 100_000
        packed, port = await processed(connector, data)
        assert zlib.decompress(packed) == data
        await asyncio.sleep(0)
        assert [entry[0] for entry in port.said].count("progress") == 5
        assert any(entry[0] == "log" and "before=300000" in entry[1] for entry in port.said)
        await connector.stop()

    asyncio.run(run())


def test_the_class_runs_as_written(modules: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        writer.write(line.upper())
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        connector = connector_of("shout", {"port": server.sockets[0].getsockname()[1]})
        assert await connector.start(), connector.reason
        result, _ = await processed(connector, "hello")
        assert (result.value, result.usage) == ("HELLO", {"characters": 5})
        with pytest.raises(failures.InvalidInput):
            await processed(connector, 7)
        server.close()
        await server.wait_closed()
        assert not await connector.probe()
        with pytest.raises(failures.ServiceUnavailable):
            await processed(connector, "hello")
        await connector.stop()

    asyncio.run(run())


def test_what_it_names_exists() -> None:
    for name in ("Cancellable", "Resumable", "HasModels", "ReportsProgress", "DescribesService"):
        assert f"`{name}`" in README
        assert isinstance(getattr(base, name), type)
    for name, kind in vars(failures).items():
        if isinstance(kind, type) and issubclass(kind, failures.ConnectorError) and f"`{name}`" in README:
            assert kind.__doc__
    start = README.index("**Context.**")
    for name in re.findall(r"`(?:await )?(\w+)\(?[^`]*`", README[start : README.index("\n\n", start)]):
        assert name == "await" or hasattr(Context, name), name
    public = {name for name in vars(SyncContext) if not name.startswith("_")}
    assert public <= {name for name in dir(Context) if not name.startswith("_")} | {"job"}


def test_the_plugin_runs_as_written(modules: Path) -> None:
    async def run() -> None:
        chain = plugins.Plugins([plugins.load("audit:Audit", {"label": "team"})], lambda plugin: None)
        port = Port()
        job = JobView(1, 1, 1, JobDetails(service="s", labels={"team": "red"}), msgspec.msgpack.encode(1))
        context = Context(port, job, 0)
        assert await chain.before(job, context) is job
        assert await chain.after(job, 7, context) == {"result": 7, "customer": "red"}
        assert [entry[1] for entry in port.said] == ["audited customer=red"]
        unlabelled = JobView(1, 1, 1, JobDetails(service="s"), msgspec.msgpack.encode(1))
        with pytest.raises(failures.RefusedByService, match="the label 'team' is missing"):
            await chain.before(unlabelled, Context(port, unlabelled, 0))
        assert chain.hung[0].error == ""

    asyncio.run(run())
