"""AIServiceConnector against a server of grpcio with its own reflection service, in an environment of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from test_connectors_readme import connector_of
from websocket_services import context_of

from empd.connectors import registry
from empd.connectors.base import ConnectorState, Site
from empd.connectors.failures import BadResponse, InvalidInput
from empd.connectors.service.ai_service import AIServiceConnector

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "servers" / "reflection" / "bin" / "python"


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    assert PYTHON.exists(), "the server's environment is missing: make .venv/servers/reflection/.ready"
    command = [str(PYTHON), str(ROOT / "tests/servers/reflection_server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"127.0.0.1:{process.stdout.readline().strip()}"
        process.kill()


def with_connector(config: dict[str, Any], use: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        connector = registry.build(AIServiceConnector, config, Site(service="s"))
        assert await connector.start(), connector.reason
        try:
            await use(connector)
        finally:
            await connector.stop()

    asyncio.run(run())


async def call(connector: Any, payload: Any) -> tuple[Any, Any]:
    context = context_of(payload)
    return await connector.process(context.job, context), context


def test_the_readmes_mapping_streams_and_joins(target: str) -> None:
    async def run() -> None:
        connector = connector_of("write", {"target": target})
        assert await connector.start(), connector.reason
        result, context = await call(connector, {"prompt": "fox", "words": 3})
        assert result == "fox0 fox1 fox2 "
        assert [entry[1] for entry in context.port.said if entry[0] == "partial"] == ["fox0 ", "fox1 ", "fox2 "]
        assert (await call(connector, {"prompt": "fox"}))[0] == ""
        await connector.stop()

    asyncio.run(run())


def test_a_unary_call_with_messages_of_imported_files(target: str) -> None:
    async def use(connector: Any) -> None:
        payload = {"prompt": "fox", "mood": {"loud": True}, "options": {"b": 1, "a": [True, None]}}
        assert (await call(connector, payload))[0] == {"text": "FOX, A, B", "size": "3"}
        with pytest.raises(InvalidInput, match="nothing to write about"):
            await call(connector, {})
        for wrong in ({"promt": 1}, {"words": "many"}, [], 7):
            with pytest.raises(InvalidInput, match=r"no demo\.Wish"):
                await call(connector, wrong)

    with_connector({"target": target, "method": "demo.Writer/Write"}, use)


def test_a_stream_of_requests_and_progress(target: str) -> None:
    async def gathers(connector: Any) -> None:
        assert (await call(connector, [{"prompt": "a"}, {"prompt": "b"}]))[0] == "a b"

    async def streams(connector: Any) -> None:
        result, context = await call(connector, {"prompt": "x", "words": 2})
        assert [piece["text"] for piece in result] == ["x0 ", "x1 "]
        assert [entry[1] for entry in context.port.said if entry[0] == "progress"] == [0.5, 1.0]
        with pytest.raises(BadResponse, match="more than 5"):
            await call(connector, {"prompt": "x", "words": 6})

    with_connector({"target": target, "method": "/demo.Writer/Gather", "result": "/text"}, gathers)
    config = {"target": target, "method": "demo.Writer/WriteStream", "progress": "/progress", "stream_answers_max": 5}
    with_connector(config, streams)


def test_a_descriptor_set_does_instead_of_reflection(target: str, tmp_path: Path) -> None:
    (tmp_path / "w.proto").write_text(
        """syntax = "proto3"; package demo;
        message Wish { string prompt = 1; } message Piece { string text = 1; }
        service Writer { rpc Write(Wish) returns (Piece); }"""
    )
    made = tmp_path / "w.binpb"
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-I",
        str(tmp_path),
        f"--descriptor_set_out={made}",
        "w.proto",
    ]
    subprocess.run(command, check=True, timeout=60)

    async def use(connector: Any) -> None:
        assert (await call(connector, {"prompt": "fox"}))[0] == {"text": "fox"}

    with_connector({"target": target, "method": "demo.Writer/Write", "descriptor_set": str(made)}, use)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "demo.Reader/Read"}, "demo.Reader"),
        ({"method": "demo.Writer/Burn"}, "it has Write, WriteStream, Gather"),
        ({"descriptor_set": "/nowhere.binpb"}, "/nowhere.binpb"),
    ],
)
def test_what_is_not_there_is_the_reason(target: str, change: dict[str, Any], words: str) -> None:
    async def run() -> None:
        config = {"target": target, "method": "demo.Writer/Write", **change}
        connector = registry.build(AIServiceConnector, config, Site(service="s"))
        assert not await connector.start()
        assert connector.state is ConnectorState.WAITING_FOR_SERVICE
        assert words in connector.reason
        await connector.stop()

    asyncio.run(run())


def test_a_damaged_or_incomplete_descriptor_set_is_the_reason(target: str, tmp_path: Path) -> None:
    lacking = descriptor_pb2.FileDescriptorSet()
    lacking.file.add(name="a.proto", dependency=["b.proto"])
    for name, data, words in (("x", b"\xff\xff", "no descriptor set"), ("y", lacking.SerializeToString(), "b.proto")):
        (tmp_path / name).write_bytes(data)

        async def run(path: str = str(tmp_path / name), words: str = words) -> None:
            config = {"target": target, "method": "demo.Writer/Write", "descriptor_set": path}
            connector = registry.build(AIServiceConnector, config, Site(service="s"))
            assert not await connector.start()
            assert words in connector.reason
            await connector.stop()

        asyncio.run(run())
