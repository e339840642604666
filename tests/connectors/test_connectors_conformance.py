"""Every connector in the tree does what it claims; and the kit finds those that do not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from conformance_cases import case_of

from empd.builtin import BUILT_IN_CONNECTORS
from empd.connectors.base import ConnectorConfig, ReportsProgress, Service
from empd.connectors.conformance import CHECKS, Case, Outcome, builtin, prove, prove_all, world
from empd.connectors.conformance.checks import life
from empd.connectors.protocol.http import HTTPConnector
from empd.connectors.protocol.http_poll import SubmitAndPoll
from empd.connectors.service.rest import RestAsyncConnector

UNCLAIMED_MAX = {"resume", "progress", "same_submission", "models", "service_info"}
"""What a connector need not claim."""

CODES = {"status_codes", "stalled_answer"}
MESSAGES = {
    *("garbage_messages", "foreign_messages", "repeated_messages"),
    *("dropped_connection", "half_closed_connection", "silent_connection"),
}
ANSWERS = {
    *("transient_fault", "lasting_fault", "final_fault", "retry_after_seconds", "retry_after_date"),
    *("cut_answer", "error_in_good_answer", "bounded_answer", "cancel_while_submitting"),
}
OF_OTHERS = {
    "http": CODES | MESSAGES,
    "grpc": MESSAGES | {"error_in_good_answer"},
    "websocket": CODES | ANSWERS,
}
"""What cannot be asked of a service by what it speaks. All else is proved."""


@pytest.mark.parametrize("name", sorted(BUILT_IN_CONNECTORS))
def test_a_built_in_connector_does_what_it_claims(name: str) -> None:
    case = case_of(name)
    findings = asyncio.run(prove_all(case))
    assert [finding for finding in findings if finding.outcome is Outcome.FAILED] == []
    assert [finding.check for finding in findings] == list(CHECKS)
    if case.server is not None:
        unclaimed = {finding.check for finding in findings if finding.outcome is Outcome.NOT_CLAIMED}
        assert unclaimed <= UNCLAIMED_MAX | OF_OTHERS[case.transport]
        assert not name.startswith("ComfyUI") or not unclaimed & MESSAGES


# --- the kit fires ---------------------------------------------------------------------------------------------------

CALLED: dict[str, Any] = {"endpoint": "/process", "health_path": "/health"}


class Called(HTTPConnector):
    """A connector that does well; the others below break one thing each."""

    def validate_service_response(self, response: Any) -> bool:
        return response.json().get("status") == "completed"


class ForgetsToClose(Called):
    async def close(self) -> None:
        self._session = None


class LeavesATask(Called):
    async def open(self) -> None:
        await super().open()
        self.left = asyncio.get_running_loop().create_task(asyncio.sleep(60))


class HealthUnasked(Called):
    async def check_health(self) -> bool:
        try:
            return await super().check_health()
        except Exception:
            return True


class TakesErrors(Called):
    def validate_service_response(self, response: Any) -> bool:
        return True


class TriesByItself(Called):
    async def process(self, job: Any, context: Any) -> Any:
        for _ in range(5):
            try:
                return await super().process(job, context)
            except Exception as error:
                last = error
        raise last


class Raises(Called):
    async def process(self, job: Any, context: Any) -> Any:
        try:
            return await super().process(job, context)
        except Exception as error:
            raise RuntimeError(str(error)) from error


class Tells(Called):
    async def process(self, job: Any, context: Any) -> Any:
        context.log(f"asking with {self.config.auth}")
        return await super().process(job, context)


class TakesHalves(Called):
    async def process(self, job: Any, context: Any) -> Any:
        try:
            return await super().process(job, context)
        except Exception:
            return {"part": True}


class NoConfig(Service):
    class Config(ConnectorConfig, forbid_unknown_fields=False):
        name: str = ""

    async def process(self, job: Any, context: Any) -> Any:
        return object()


class Falls(Service, ReportsProgress):
    async def process(self, job: Any, context: Any) -> Any:
        context.progress(0.9)
        context.progress(0.4)
        return {}


class Silent(Falls):
    async def process(self, job: Any, context: Any) -> Any:
        return {}


class ClosesBadly(Called):
    async def close(self) -> None:
        assert self._session is not None
        await super().close()


class Anew(RestAsyncConnector):
    """Forgets what it has submitted."""

    async def process(self, job: Any, context: Any) -> Any:
        if context.upstream.handle is not None:
            context.last_checkpoint = None
            context._upstream = None
        return await super().process(job, context)

    async def main_request(self, job: Any, context: Any) -> Any:
        method, path, options = await super().main_request(job, context)
        options["idempotency_key"] = f"{context.epoch}"
        return method, path, options


class CancelsNothing(RestAsyncConnector):
    async def interrupt(self, upstream_id: str, context: Any) -> bool:
        return True


class CancelsTheFirst(RestAsyncConnector):
    async def interrupt(self, upstream_id: str, context: Any) -> bool:
        await super().interrupt("task-1", context)
        return await super().interrupt(upstream_id, context)


def case_for(kind: type[Service]) -> Case:
    if issubclass(kind, SubmitAndPoll):
        return Case(connector=kind, **builtin._polled(builtin._JOBS))
    if not issubclass(kind, HTTPConnector):
        return Case(connector=kind, payload={})
    return Case(
        connector=kind,
        server=builtin.simulated_http,
        api_config=CALLED,
        payload={"duration_s": 0.01},
        submits=("POST /process",),
        error_body=builtin.ERROR_BODY,
    )


@pytest.mark.parametrize(
    ("kind", "check", "words"),
    [
        (ForgetsToClose, "nothing_left", "Unclosed"),
        (LeavesATask, "nothing_left", "task sleep"),
        (HealthUnasked, "health", "true although the service is gone"),
        (TakesErrors, "error_in_good_answer", "took this for a result"),
        (TriesByItself, "lasting_fault", "the configuration allows 4"),
        (TriesByItself, "final_fault", "was asked for"),
        (Raises, "lasting_fault", "RuntimeError"),
        (Tells, "no_secret", "a secret was told"),
        (TakesHalves, "cut_answer", "half an answer"),
        (NoConfig, "unknown_key", "it took"),
        (NoConfig, "one_job", "no msgpack form"),
        (Falls, "progress", "it fell"),
        (Silent, "progress", "without one call"),
        (ClosesBadly, "close_twice", "without open raised AssertionError"),
        (Anew, "resume", "different submissions"),
        (Anew, "same_submission", "different submissions"),
        (CancelsNothing, "cancel_running", "not told to stop"),
        (CancelsTheFirst, "cancel_neighbour", "cancelled upstream|says cancelled"),
    ],
)
def test_the_kit_finds_it(kind: type[Service], check: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "HEALTH_S_MAX", 0.5)
    monkeypatch.setattr(world, "SETTLE_S_MAX", 0.5)
    finding = asyncio.run(prove(CHECKS[check], case_for(kind)))
    assert finding.outcome is Outcome.FAILED, finding
    assert any(word in finding.seen for word in words.split("|")), finding.seen


def test_a_connector_that_does_well_passes() -> None:
    findings = asyncio.run(prove_all(case_for(Called)))
    assert [finding for finding in findings if finding.outcome is Outcome.FAILED] == []


def test_without_a_server_only_what_needs_none_is_proved() -> None:
    findings = asyncio.run(prove_all(Case(connector=Called, api_config={**CALLED, "base_url": "http://127.0.0.1:1"})))
    passed = {finding.check for finding in findings if finding.outcome is Outcome.PASSED}
    assert {"unknown_key", "wrong_type", "close_twice", "nothing_left"} <= passed
    assert {finding.outcome for finding in findings} == {Outcome.PASSED, Outcome.NOT_CLAIMED}


def test_every_check_says_what_it_proves() -> None:
    for check in CHECKS.values():
        assert check.reason.endswith(".")
        assert len(check.reason) <= 110
