"""The conformance kit on WebSocket and gRPC: it finds connectors that messages or status codes lead astray."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from test_connectors_grpc import opened

from empd.connectors.base import Service
from empd.connectors.conformance import CHECKS, Case, Fault, Outcome, builtin, prove
from empd.connectors.conformance.checks import messages
from empd.connectors.conformance.gates import gate_for
from empd.connectors.failures import ConnectorError, ServiceUnavailable
from empd.connectors.protocol.grpc_errors import GRPC_ROWS
from empd.connectors.protocol.verdicts import Fault as Blame
from empd.connectors.protocol.verdicts import Retry, Row, VerdictTable
from empd.connectors.service.kserve import KServeConnector
from empd.connectors.service.simulation_websocket import SimulationWebsocketConnector
from empd.errors import FailureClass
from empd.job import Cause
from tests.doubles.triton import Triton


class HangsUpOnGarbage(SimulationWebsocketConnector):
    def decode(self, frame: Any) -> Any:
        try:
            return super().decode(frame)
        except ValueError:
            self.spawn(self.socket.drop(self.socket.generation))
            raise


class TakesTheNewest(SimulationWebsocketConnector):
    """Leads a message to the newest job."""

    def extract_job_id(self, message: Any) -> str | None:
        running = [run.key for run in self.runs.values()]
        return running[-1] if running else super().extract_job_id(message)


class TakesTheOldest(TakesTheNewest):
    """Leads what it cannot place to the oldest job."""

    def extract_job_id(self, message: Any) -> str | None:
        known = super(TakesTheNewest, self).extract_job_id(message)
        running = [run.key for run in self.runs.values()]
        return known if known in running or not running else running[0]


class GivesUp(SimulationWebsocketConnector):
    async def process(self, job: Any, context: Any) -> Any:
        try:
            return await super().process(job, context)
        except ConnectorError as error:
            raise ConnectorError("no more", retry=False) from error

    async def query_job(self, job_id: str, context: Any) -> Any:
        raise ConnectorError("it cannot be asked", retry=False)


class HasNoHeartbeat(SimulationWebsocketConnector):
    def __init__(self, config: Any, site: Any) -> None:
        super().__init__(msgspec.structs.replace(config, heartbeat_interval_s=0.0), site)


class SendsAgain(SimulationWebsocketConnector):
    """Hands a job over again after a loss, under another name."""

    async def process(self, job: Any, context: Any) -> Any:
        try:
            return await super().process(job, context)
        except ServiceUnavailable:
            context.job.epoch += 1
            return await super().process(job, context)

    async def query_job(self, job_id: str, context: Any) -> Any:
        raise ServiceUnavailable("it cannot be asked")


class Tells(SimulationWebsocketConnector):
    async def handshake(self) -> Any:
        shown = await super().handshake()
        self.log.info("connects", shown=dict(shown.headers))
        return shown


@pytest.mark.parametrize(
    ("kind", "check", "words"),
    [
        (HangsUpOnGarbage, "garbage_messages", "it gave up the connection|the connection broke|a job still waits"),
        (TakesTheNewest, "foreign_messages", "a job still waits|ended by what"),
        (TakesTheOldest, "foreign_messages", "ended by what was said of others"),
        (TakesTheOldest, "repeated_messages", "ended by what was said of others"),
        (GivesUp, "dropped_connection", "given up for good"),
        (GivesUp, "half_closed_connection", "given up for good"),
        (HasNoHeartbeat, "silent_connection", "still waits"),
        (SendsAgain, "dropped_connection", "began the work of 3 jobs 4 times"),
        (Tells, "no_secret", "a secret was told"),
    ],
)
def test_the_kit_finds_what_messages_lead_astray(
    kind: type[Service], check: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "WAIT_S_MAX", 2.0)
    finding = asyncio.run(prove(CHECKS[check], Case(connector=kind, **builtin._socket({}))))
    assert finding.outcome is Outcome.FAILED, finding
    assert any(word in finding.seen for word in words.split("|")), finding.seen


class Patient(KServeConnector):
    """Takes what will not pass for what may."""

    verdicts = VerdictTable(
        Row(FailureClass.UNAVAILABLE, Retry.LATER, Blame.SERVICE, cause=Cause.UPSTREAM, codes={"UNIMPLEMENTED"}),
        *GRPC_ROWS,
    )


class Persistent(KServeConnector):
    async def process(self, job: Any, context: Any) -> Any:
        for _ in range(3):
            try:
                return await super().process(job, context)
            except ConnectorError as error:
                last = error
        raise last


class TakesNothingForAll(KServeConnector):
    async def process(self, job: Any, context: Any) -> Any:
        try:
            return await super().process(job, context)
        except ConnectorError:
            return {"answers": []}


class Logs(KServeConnector):
    async def process(self, job: Any, context: Any) -> Any:
        try:
            return await super().process(job, context)
        except ConnectorError as error:
            raise type(error)(f"{error.message} with {self.config.auth}") from None


@pytest.mark.parametrize(
    ("kind", "check", "words"),
    [
        (Patient, "status_codes", "UNIMPLEMENTED is to be tried again"),
        (Persistent, "status_codes", "was asked for 3 times"),
        (Persistent, "final_fault", "was asked for 3 times"),
        (TakesNothingForAll, "stalled_answer", "took this for a result"),
        (TakesNothingForAll, "cut_answer", "half an answer"),
        (Logs, "no_secret", "a secret was told"),
    ],
)
def test_the_kit_finds_what_status_codes_lead_astray(kind: type[Service], check: str, words: str) -> None:
    finding = asyncio.run(prove(CHECKS[check], Case(connector=kind, **builtin._inferred())))
    assert finding.outcome is Outcome.FAILED, finding
    assert words in finding.seen


def test_streams_and_single_calls_of_a_model_server_are_proved_alike() -> None:
    tensor = {"name": "x", "datatype": "INT32", "shape": [2], "data": [1, 2]}
    payload = {"inputs": [tensor], "stream": True, "parameters": {"answers": 4}}
    case = builtin._models(
        "ModelStreamInfer",
        payload,
        {"duration_s": builtin.LONG_S},
        api_config={"model": "double"},
        error_body=b"\n\x0cit is broken",
    )
    checks = ("one_job", "cancel_running", "transient_fault", "status_codes", "cut_answer", "stalled_answer")
    for name in (*checks, "error_in_good_answer"):
        finding = asyncio.run(prove(CHECKS[name], Case(connector=KServeConnector, **case)))
        assert finding.outcome is Outcome.PASSED, finding


def test_a_short_back_off_of_a_grpc_call_is_no_lost_call() -> None:
    async def run() -> None:
        server = await Triton().start()
        gate = await gate_for("grpc", f"http://{server.target}").start()
        retry = {"attempts_max": 4, "base_s": 0.0001, "cap_s": 0.0001}
        try:
            async with opened(target=gate.url.removeprefix("http://"), retry=retry, circuit=None) as connector:
                gate.inject(Fault(("CALL *ServerReady",), status=503))
                for number in range(1, 13):
                    with pytest.raises(ServiceUnavailable, match="UNAVAILABLE"):
                        await connector.check_health()
                    assert len(gate.matching(("CALL *ServerReady",))) == 1 + 4 * number
        finally:
            await gate.close()
            await server.stop()

    asyncio.run(run())
