"""KServeConnector against MLServer, in an environment of its own that `make unit` sets up."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websocket_services import context_of

from empd.connectors.base import Site
from empd.connectors.failures import NotFound, ServiceTimeout, ServiceUnavailable
from empd.connectors.service.kserve import KServeConnector
from tests.box import Box, wait_until

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "servers" / "mlserver" / "bin" / "python"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def start(log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The server and its port, once it listens. Another process may take a free port first: then once more."""
    for _ in range(5):
        ports = free_ports(2)
        command = [str(PYTHON), str(ROOT / "tests/servers/mlserver_model.py"), *map(str, ports)]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, cwd=log.parent)
        wait_until(lambda p=process, port=ports[0]: p.poll() is not None or listens(port), "MLServer", 60.0)
        if process.poll() is None:
            return process, ports[0]
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    assert PYTHON.exists(), "the server's environment is missing: make .venv/servers/mlserver/.ready"
    process, port = start(tmp_path_factory.mktemp("mlserver") / "log")
    yield f"127.0.0.1:{port}"
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def with_connector(target: str, use: Callable[[KServeConnector], Coroutine[Any, Any, None]], **config: Any) -> None:
    async def run() -> None:
        settings = {"target": target, "model": "arithmetic", "retry": {"attempts_max": 1}, **config}
        connector = KServeConnector(msgspec.convert(settings, KServeConnector.Config), Site(service="s"))
        async with asyncio.timeout(60):
            while not await connector.start():  # it listens before the model is loaded
                await connector.stop()
                await asyncio.sleep(0.05)
        try:
            await use(connector)
        finally:
            await connector.stop()

    asyncio.run(run())


async def infer(connector: KServeConnector, **payload: Any) -> Any:
    context = context_of(payload)
    return await connector.process(context.job, context)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("INT32", [1, -2, 3, 4], [2, -4, 6, 8]),
        ("INT64", [1 << 40, 0, 0, 0], [1 << 41, 0, 0, 0]),
        ("UINT8", [1, 2, 3, 100], [2, 4, 6, 200]),
        ("UINT64", [1 << 60, 1, 2, 3], [1 << 61, 2, 4, 6]),
        ("FP32", [0.5, -1.25, 0.0, 2.0], [1.0, -2.5, 0.0, 4.0]),
        ("FP64", [0.1, 1e300, 0.0, 2.0], [0.2, 2e300, 0.0, 4.0]),
        ("BOOL", [True, False, True, True], [False, True, False, False]),
        ("BYTES", ["a", "bé", "", "d"], ["A", "BÉ", "", "D"]),
    ],
)
def test_tensors_there_and_back(target: str, datatype: str, data: list[Any], expected: list[Any], raw: bool) -> None:
    if datatype == "BYTES":  # upper() of bytes knows ASCII only
        expected = ["A", "Bé", "", "D"]

    async def use(connector: KServeConnector) -> None:
        tensor = {"name": "x", "datatype": datatype, "shape": [2, 2], "data": [data[:2], data[2:]]}
        result = await infer(connector, inputs=[tensor], raw=raw)
        output = {"name": "x", "datatype": datatype, "shape": [2, 2], "data": expected}
        assert (result["model"], result["version"], result["outputs"]) == ("arithmetic", "v3", [output])

    with_connector(target, use)


def test_what_the_server_says_of_itself(target: str) -> None:
    async def use(connector: KServeConnector) -> None:
        info = await connector.service_info()
        assert info["name"] == "mlserver"
        assert info["model"]["name"] == "arithmetic"
        assert await connector.models() == ["arithmetic"]

    with_connector(target, use)


def test_its_streams_are_bare_answers(target: str) -> None:
    async def use(connector: KServeConnector) -> None:
        tensor = {"name": "x", "datatype": "INT32", "data": [7, 1]}
        result = await infer(connector, inputs=[tensor], stream=True, parameters={"answers": 4})
        assert [answer["outputs"][0]["data"] for answer in result["answers"]] == [[n, 2] for n in range(4)]
        assert result["answers"][0]["model"] == "arithmetic"

    with_connector(target, use)


def test_its_failures_have_their_classes(target: str) -> None:
    tensor = {"name": "x", "datatype": "INT32", "data": [1]}

    async def use(connector: KServeConnector) -> None:
        with pytest.raises(ServiceUnavailable, match="the model broke"):
            await infer(connector, inputs=[tensor], parameters={"break": True})
        with pytest.raises(NotFound):
            await infer(connector, inputs=[tensor], model="nobody")
        connector.config.timeout_s = 0.3
        with pytest.raises(ServiceTimeout):
            await infer(connector, inputs=[tensor], parameters={"wait_s": 60})

    with_connector(target, use)


def test_a_cancelled_job_stops_the_model(target: str) -> None:
    tensor = {"name": "x", "datatype": "INT32", "data": [1]}

    async def use(connector: KServeConnector) -> None:
        async def stopped() -> int:
            (output,) = (await infer(connector, inputs=[{**tensor, "name": "stopped"}]))["outputs"]
            return int(output["data"][0])

        before, wait_s = await stopped(), 0.1
        while await stopped() == before:
            job = asyncio.create_task(infer(connector, inputs=[tensor], parameters={"wait_s": 60}))
            await asyncio.sleep(wait_s)
            job.cancel()
            await asyncio.wait((job,))
            assert job.cancelled()
            wait_s *= 2

    with_connector(target, use)


def test_through_a_whole_daemon_beside_a_callable_in_a_process(target: str) -> None:
    """gRPC's threads live in the worker; the processes that it starts for callables get none of them."""
    worker = {"services": ["arithmetic", "square"], "instances": 1, "max_concurrent_jobs": 2}
    mapping = {
        "workers": {"both": worker},
        "services": {
            "arithmetic": {"connector": "KServeConnector", "api_config": {"target": target, "model": "arithmetic"}},
            "square": {
                "connector": "PythonConnector",
                "isolation": "process",
                "api_config": {"callable": "tasks:square"},
            },
        },
    }
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, 2.5]}
    with Box(mapping) as box, box.client() as client:
        handles = [client.submit("arithmetic", {"inputs": [tensor]}) for _ in range(10)]
        others = [client.submit("square", {"x": n}) for n in range(10)]
        assert [handle.result(timeout=60)["outputs"][0]["data"] for handle in handles] == [[3.0, 5.0]] * 10
        assert [handle.result(timeout=60)["value"] for handle in others] == [n**2 for n in range(10)]
