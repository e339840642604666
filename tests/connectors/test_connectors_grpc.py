"""GRPCConnector and KServeConnector against grpc.aio servers that speak Triton's dialect."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from websocket_services import context_of, until

from empd.connectors import registry
from empd.connectors.base import ConnectorState, Site
from empd.connectors.failures import (
    AuthFailed,
    BadResponse,
    ConnectorError,
    InvalidInput,
    NotFound,
    RateLimited,
    ServiceTimeout,
    ServiceUnavailable,
)
from empd.connectors.service.kserve import KServeConnector
from empd.job import Cause
from tests.doubles.triton import Triton

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"base_s": 0.01, "cap_s": 0.05}
INPUT = {"name": "x", "datatype": "INT32", "shape": [2, 2], "data": [[1, 2], [3, 4]]}


@contextlib.asynccontextmanager
async def served(healthy: bool = True, **config: Any) -> AsyncIterator[tuple[Triton, KServeConnector]]:
    """A server and a connector to it."""
    server = await Triton().start()
    try:
        async with opened(healthy, **{"target": server.target, **config}) as connector:
            yield server, connector
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def opened(healthy: bool = True, **config: Any) -> AsyncIterator[KServeConnector]:
    """A connector that is open."""
    settings = {"model": "double", "retry": {**QUICK, "attempts_max": 4}, **config}
    connector = KServeConnector(msgspec.convert(settings, KServeConnector.Config), Site(service="s"))
    assert await connector.start() is healthy, connector.reason
    try:
        yield connector
    finally:
        await connector.stop()


async def infer(connector: KServeConnector, job_id: int = 1, timeout_s: float = 0.0, **payload: Any) -> Any:
    context = context_of({"inputs": [INPUT], **payload}, job_id=job_id)
    context.started_ns = int(context.clock() * 1e9)
    context.timeout_s = timeout_s
    return await connector.process(context.job, context)


def test_an_inference_there_and_back_typed_and_raw() -> None:
    async def run() -> None:
        async with served() as (server, connector):
            assert connector.state is ConnectorState.IDLE
            for raw in (False, True):
                result = await infer(connector, raw=raw)
                assert result == {
                    "model": "double",
                    "version": "1",
                    "outputs": [{"name": "x", "datatype": "INT32", "shape": [2, 2], "data": [2, 4, 6, 8]}],
                }
            assert server.calls["ModelInfer"] == 2
            assert await connector.models() == ["double"]
            info = await connector.service_info()
            assert (info["name"], info["version"], info["model"]["platform"]) == ("triton", "2.51.0", "python")
        async with served(raw_results=True) as (_, connector):
            (output,) = (await infer(connector, raw=True))["outputs"]
            assert output["data"] == b"\x02\0\0\0\x04\0\0\0\x06\0\0\0\x08\0\0\0"

    asyncio.run(run())


def test_a_stream_shows_each_answer_and_ends_with_all() -> None:
    async def run() -> None:
        async with served(stream_answers_max=6) as (server, connector):
            payload = {"inputs": [INPUT], "stream": True, "requests": [{"parameters": {"answers": 3}}, {}]}
            context = context_of(payload)
            result = await connector.process(context.job, context)
            assert [answer["parameters"] for answer in result["answers"]] == [{"number": n} for n in (0, 1, 2, 0)]
            assert result["answers"][0]["outputs"][0]["data"] == [2, 4, 6, 8]
            assert [entry[1] for entry in context.port.said if entry[0] == "partial"] == result["answers"]
            with pytest.raises(BadResponse, match="unknown model: 'other'"):
                await infer(connector, stream=True, model="other")
            with pytest.raises(BadResponse, match="more than 6 answers"):
                await infer(connector, stream=True, parameters={"answers": 7})
            with pytest.raises(InvalidInput):
                await infer(connector, stream=True, requests=[])
            assert server.calls["ModelStreamInfer"] == 3

    asyncio.run(run())


def test_a_server_that_is_away_or_not_ready_gets_no_jobs() -> None:
    async def run() -> None:
        async with served(healthy=False, model="other") as (_, connector):
            assert connector.reason == "model other is not ready"
        retry = {"attempts_max": 1, **QUICK}
        async with opened(healthy=False, target="127.0.0.1:1", retry=retry) as connector:
            assert connector.state is ConnectorState.WAITING_FOR_SERVICE
            with pytest.raises(ServiceUnavailable) as caught:
                await infer(connector)
            assert (caught.value.cause, caught.value.retry) == (Cause.UPSTREAM, True)

    asyncio.run(run())


def refuse(code: str, *trailing: tuple[str, str]) -> Any:
    return grpc.StatusCode[code], trailing


@pytest.mark.parametrize(
    ("code", "kind", "retry", "cause"),
    [
        ("INVALID_ARGUMENT", InvalidInput, False, Cause.JOB_FAULT),
        ("NOT_FOUND", NotFound, False, Cause.JOB_FAULT),
        ("UNAUTHENTICATED", AuthFailed, False, Cause.JOB_FAULT),
        ("PERMISSION_DENIED", AuthFailed, False, Cause.JOB_FAULT),
        ("UNIMPLEMENTED", ServiceUnavailable, False, Cause.JOB_FAULT),
        ("RESOURCE_EXHAUSTED", RateLimited, True, Cause.JOB_FAULT),
        ("UNAVAILABLE", ServiceUnavailable, True, Cause.UPSTREAM),
        ("DEADLINE_EXCEEDED", ServiceTimeout, True, Cause.JOB_FAULT),
        ("CANCELLED", ServiceUnavailable, True, Cause.JOB_FAULT),
        ("ABORTED", ServiceUnavailable, True, Cause.JOB_FAULT),
        ("INTERNAL", ServiceUnavailable, True, Cause.JOB_FAULT),
        ("UNKNOWN", ServiceUnavailable, True, Cause.JOB_FAULT),
        ("DATA_LOSS", BadResponse, True, Cause.JOB_FAULT),
    ],
)
def test_each_status_says_what_follows(code: str, kind: type[ConnectorError], retry: bool, cause: Cause) -> None:
    async def run() -> None:
        async with served(retry={"attempts_max": 1}) as (server, connector):
            for payload in ({}, {"stream": True}):
                server.failing = [refuse(code)]
                with pytest.raises(kind) as caught:
                    await infer(connector, **payload)
                assert type(caught.value) is kind
                assert (caught.value.retry, caught.value.cause) == (retry, cause)
                assert code in caught.value.message
                assert "as told" in caught.value.message or code == "CANCELLED"

    asyncio.run(run())


def test_a_service_that_says_when_to_come_again_is_obeyed_free_of_charge() -> None:
    async def run() -> None:
        async with served(retry={"attempts_max": 1}) as (server, connector):
            server.failing = [refuse("RESOURCE_EXHAUSTED", ("retry-after", "9"))]
            with pytest.raises(RateLimited) as caught:
                await infer(connector)
            assert (caught.value.retry_after_s, caught.value.cause) == (9.0, Cause.UPSTREAM)

    asyncio.run(run())


def test_unavailable_is_tried_again_by_grpc_and_by_nobody_else() -> None:
    async def run() -> None:
        async with served() as (server, connector):
            server.failing = [refuse("UNAVAILABLE")] * 2
            assert (await infer(connector))["outputs"][0]["data"] == [2, 4, 6, 8]
            assert server.calls["ModelInfer"] == 3
            server.failing = [refuse("UNAVAILABLE")] * 20
            with pytest.raises(ServiceUnavailable):
                await infer(connector)
            assert server.calls["ModelInfer"] == 3 + 4
            server.failing = [refuse("INTERNAL")]
            with pytest.raises(ServiceUnavailable):
                await infer(connector)
            assert server.calls["ModelInfer"] == 3 + 4 + 1

    asyncio.run(run())


def test_a_circuit_opens_after_faults_of_the_service_alone() -> None:
    async def run() -> None:
        circuit = {"failures_max": 3, "open_s": 60}
        async with served(retry={"attempts_max": 1}, circuit=circuit) as (server, connector):
            server.failing = [refuse("INVALID_ARGUMENT")] * 5 + [refuse("INTERNAL")] * 3
            for _ in range(8):
                with pytest.raises(ConnectorError):
                    await infer(connector)
            with pytest.raises(ServiceUnavailable, match="circuit"):
                await infer(connector)
            assert server.calls["ModelInfer"] == 8

    asyncio.run(run())


def test_calls_go_round_over_several_addresses_and_past_a_dead_one() -> None:
    async def run() -> None:
        servers = [await Triton().start() for _ in range(3)]
        addresses = [server.target for server in servers]
        async with opened(addresses=addresses) as connector:
            done = 0
            while done < 300 and not all(server.calls.get("ModelInfer", 0) > 2 for server in servers):
                await infer(connector)
                done += 1
            assert all(server.calls["ModelInfer"] > 2 for server in servers)
            await servers[0].stop()
            before = servers[0].calls["ModelInfer"]
            for _ in range(12):
                await infer(connector)
            assert servers[0].calls["ModelInfer"] == before
        for server in servers[1:]:
            await server.stop()

    asyncio.run(run())


@pytest.mark.parametrize("limit", ["timeout_s", "deadline"])
def test_a_deadline_ends_the_call_at_the_server_too(limit: str) -> None:
    async def run() -> None:
        async with served() as (server, connector):
            if limit == "timeout_s":
                connector.config.timeout_s = 0.3
            while not server.ended:
                with pytest.raises(ServiceTimeout):
                    await infer(connector, timeout_s=0.3 if limit == "deadline" else 0.0, parameters={"wait": True})
                await asyncio.sleep(0.05)
            with pytest.raises(ServiceTimeout, match="has passed"):
                await infer(connector, timeout_s=1e-9)

    asyncio.run(run())


def test_a_cancelled_job_is_cancelled_at_the_server() -> None:
    async def run() -> None:
        async with served() as (server, connector):
            job = asyncio.create_task(infer(connector, parameters={"wait": True}))
            await until(lambda: server.calls.get("ModelInfer"))
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job
            await until(lambda: len(server.ended) == 1)

    asyncio.run(run())


def test_messages_above_the_limit_are_charged_to_the_job() -> None:
    async def run() -> None:
        async with served(message_bytes_max=10_000) as (server, connector):
            many = {"name": "x", "datatype": "INT32", "data": [1 << 30] * 5_000}
            with pytest.raises(InvalidInput, match="message_bytes_max"):
                await infer(connector, inputs=[many])
            assert "ModelInfer" not in server.calls
            with pytest.raises(RateLimited) as caught:
                await infer(connector, parameters={"size": 20_000})
            assert caught.value.cause is Cause.JOB_FAULT

    asyncio.run(run())


def test_it_shows_who_it_is_and_whose_trace_it_is() -> None:
    async def run() -> None:
        auth = {"type": "bearer", "token": "secret"}
        async with served(auth=auth, metadata={"X-Own": "yes"}) as (server, connector):
            context = context_of({"inputs": [INPUT]})
            trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            context.job.details = msgspec.structs.replace(context.job.details, trace=trace)
            await connector.process(context.job, context)
            seen = server.metadata[-1]
            assert (seen["authorization"], seen["x-own"], seen["traceparent"]) == ("Bearer secret", "yes", trace)
            assert seen["user-agent"].startswith("empd/")

    asyncio.run(run())


def certificate(folder: Path) -> tuple[bytes, bytes]:
    """A key and its own certificate for `box.example`, written to files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "box.example")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("box.example")]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = made.public_bytes(pem)
    (folder / "ca.pem").write_bytes(public)
    (folder / "key.pem").write_bytes(secret)
    return secret, public


def test_tls_trusts_the_authority_that_is_named_and_no_other(tmp_path: Path) -> None:
    secret, public = certificate(tmp_path)
    mutual = {"ca_file": str(tmp_path / "ca.pem"), "server_name": "box.example"}

    async def run() -> None:
        credentials = grpc.ssl_server_credentials([(secret, public)], public, require_client_auth=True)
        server = await Triton().start(credentials)
        files = {"key_file": str(tmp_path / "key.pem"), "cert_file": str(tmp_path / "ca.pem")}
        async with opened(target=server.target, tls={**mutual, **files}) as connector:
            assert (await infer(connector))["outputs"][0]["data"] == [2, 4, 6, 8]
        for wrong in (mutual, {}, {**mutual, **files, "server_name": "other.example"}):
            async with opened(healthy=False, target=server.target, tls=wrong, timeout_s=5):
                pass
        async with opened(healthy=False, target=server.target, tls={"ca_file": "/nowhere.pem"}) as connector:
            assert connector.state is ConnectorState.OFFLINE
            assert "/nowhere.pem" in connector.reason
        await server.stop()

    asyncio.run(run())


def test_a_wrong_address_is_said_when_the_connector_is_built() -> None:
    with pytest.raises(registry.ConnectorUnavailable, match="literal IPv4"):
        registry.build(KServeConnector, {"addresses": ["a:1", "b:2"]}, Site(service="s"))

    async def run() -> None:
        connector = KServeConnector(KServeConnector.Config(model="double"), Site(service="s"))
        assert not await connector.start()
        assert "where is the service?" in connector.reason
        with pytest.raises(ServiceUnavailable):
            await infer(connector)

    asyncio.run(run())


def test_grpc_is_loaded_by_those_who_configure_it_and_named_where_it_is_missing() -> None:
    code = (
        "import sys, empd.worker.process, empd.supervisor.process, empd.connectors.protocol.grpc_config; "
        "print([m for m in sys.modules if m.partition('.')[0] == 'grpc' or m.startswith('google.protobuf')]); "
        "sys.modules['grpc'] = None\n"
        "from empd.connectors import registry\n"
        "try: registry.load_class('KServeConnector')\n"
        "except registry.ConnectorUnavailable as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    modules, reason = found.stdout.splitlines()
    assert modules == "[]"
    assert "pip install 'empd[grpc]'" in reason
