"""Base, registry, verdicts, context, and the built-in connectors, without a worker around them."""

from __future__ import annotations

import asyncio
import importlib.metadata
import sys
import threading
from pathlib import Path
from types import FunctionType
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from empd.connectors import failures, registry
from empd.connectors.base import Connector, ConnectorConfig, ConnectorState, Service, Site
from empd.connectors.context import (
    CHECKPOINT_BYTES_MAX,
    Context,
    JobDetails,
    JobView,
    SyncContext,
    ThreadBridge,
)
from empd.connectors.service import callables
from empd.connectors.service.pool import how_it_died
from empd.connectors.service.simulation import SimulationConnector
from empd.connectors.service.threads import WorkThreads
from empd.connectors.verdict import EVIDENCE_CHARS_MAX, MESSAGE_CHARS_MAX, judge
from empd.errors import BlobMissing, FailureClass, Refused
from empd.job import Cause
from empd.payload import BlobRef


class NoAssets:
    """Where nothing can be saved."""

    async def save(self, content: Any, **options: Any) -> Any:
        raise failures.ServiceUnavailable("no storage for assets is configured here", retry=False)


class Port:
    """Keeps what a context says."""

    def __init__(self) -> None:
        self.secrets: dict[str, str] = {"KEY": "value"}
        self.instance = "1f" * 16
        self.said: list[tuple[Any, ...]] = []
        self.blob = b""

    def assets(self, context: Any) -> NoAssets:
        return NoAssets()

    def progress(self, context: Any, fraction: float, message: str, step: int, steps: int) -> None:
        self.said.append(("progress", fraction, message, step, steps))

    def partial(self, context: Any, value: Any) -> None:
        self.said.append(("partial", value))

    def log(self, context: Any, text: str) -> None:
        self.said.append(("log", text, threading.current_thread() is threading.main_thread()))

    async def checkpoint(self, context: Any, data: bytes, doubt: str) -> None:
        self.said.append(("checkpoint", data))
        if doubt:
            self.said.append(("doubt", doubt))

    async def state_get(self, key: str) -> tuple[int, bytes]:
        return 3, key.encode()

    async def state_set(self, context: Any, key: str, data: bytes, expected_version: int) -> int:
        return expected_version + 1

    def read_blob(self, ref: BlobRef) -> bytes:
        return self.blob

    def view_blob(self, ref: BlobRef) -> memoryview:
        return memoryview(self.blob)


def context_of(payload: Any = None, *, encoding: str = "msgpack", attempt: int = 1, job_id: int = 1) -> Context:
    carried = payload if isinstance(payload, (bytes, BlobRef)) else msgspec.msgpack.encode(payload)
    return Context(Port(), JobView(job_id, 9, attempt, JobDetails(service="s", encoding=encoding), carried), 10**9)


def simulate(config: dict[str, Any], payload: Any = None, **job: Any) -> tuple[Any, Context]:
    connector = registry.build(SimulationConnector, config, Site(service="s"))
    context = context_of(payload, **job)
    return asyncio.run(connector.process(context.job, context)), context


# --- registry and base -----------------------------------------------------------------------------------------------


def test_built_in_names_lead_to_connectors() -> None:
    for name in registry.available():
        assert issubclass(registry.load_class(name), Connector)
    assert registry.load_class("SimulationConnector") is SimulationConnector


@pytest.mark.parametrize(
    ("name", "path", "words"),
    [
        ("Unknown", None, "there is no connector 'Unknown'"),
        ("X", "no_such_module:X", "No module named 'no_such_module'"),
        ("Nothing", "empd.connectors.base:Nothing", "is not a Connector class"),
        ("describe", "empd.connectors.base:describe", "is not a Connector class"),
        ("X", "empd.connectors.base:Connector", "accepted: the class's name"),
        ("X", "empd.connectors.base", "is not module:Class"),
    ],
)
def test_what_cannot_be_a_connector_is_named(name: str, path: str | None, words: str) -> None:
    with pytest.raises(registry.ConnectorUnavailable, match=words):
        registry.load_class(name, path)


def test_a_module_that_breaks_while_imported_is_a_reason(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "breaks_on_import.py").write_text("raise RuntimeError('boom')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(registry.ConnectorUnavailable, match="boom"):
        registry.load_class("X", "breaks_on_import:X")


def test_entry_points_are_found(monkeypatch) -> None:
    point = importlib.metadata.EntryPoint(
        "Extra", "empd.connectors.service.simulation:SimulationConnector", registry.ENTRY_POINT_GROUP
    )
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    assert registry.load_class("Extra") is SimulationConnector
    assert "Extra" in registry.available()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"steps": "many"}, "services.s.api_config: steps: Expected `int`"),
        ({"stepz": 1}, "unknown field `stepz`"),
        ({"fault": "explode"}, "fault: Invalid enum value 'explode'"),
    ],
)
def test_a_wrong_configuration_names_the_key(config: dict[str, Any], words: str) -> None:
    with pytest.raises(registry.ConnectorUnavailable, match=words.replace("(", r"\(")):
        registry.build(SimulationConnector, config, Site(service="s"))


class Needy(Connector):
    required_env: ClassVar[tuple[str, ...]] = ("BASE_KEY",)


class Needier(Needy):
    required_env: ClassVar[tuple[str, ...]] = ("OWN_KEY", "BASE_KEY")


def test_required_variables_are_merged_over_the_bases() -> None:
    assert Needier.environment_needed() == ("BASE_KEY", "OWN_KEY")
    assert Connector.environment_needed() == ()


class Moody(Service):
    """Opens and is well as it is told."""

    def __init__(self) -> None:
        super().__init__(ConnectorConfig(), Site(service="moody"))
        self.script: dict[str, Any] = {"open": None, "health": True, "close": None}
        self.closed = 0

    async def open(self) -> None:
        if self.script["open"]:
            raise self.script["open"]

    async def check_health(self) -> bool:
        if isinstance(self.script["health"], Exception):
            raise self.script["health"]
        return self.script["health"]

    async def close(self) -> None:
        self.closed += 1
        if self.script["close"]:
            raise self.script["close"]


class Silent(Moody):
    """Its service takes every question and answers none."""

    health_limit_s = 0.01

    async def check_health(self) -> bool:
        await asyncio.Event().wait()
        return True


def test_a_health_check_that_never_answers_is_a_bad_one() -> None:
    async def life() -> None:
        silent = Silent()
        assert not await silent.start()
        assert silent.state is ConnectorState.WAITING_FOR_SERVICE
        assert silent.reason == "the health check did not answer within 0.01 s"
        await silent.stop()
        assert silent.closed == 1

    asyncio.run(life())


def test_the_base_drives_the_states() -> None:
    async def life() -> None:
        moody = Moody()
        assert moody.state is ConnectorState.STARTING
        moody.script["open"] = OSError("not yet")
        assert not await moody.start()
        assert (moody.state, moody.reason, moody.may_start) == (ConnectorState.OFFLINE, "OSError: not yet", True)
        moody.script["open"] = failures.ConnectorError("never", retry=False)
        assert not await moody.start()
        assert (moody.reason, moody.may_start) == ("never", False)
        moody.script.update(open=None, health=False)
        assert not await moody.start()
        assert moody.state is ConnectorState.WAITING_FOR_SERVICE
        moody.script["health"] = True
        assert await moody.probe()
        assert (moody.state, moody.reason) == (ConnectorState.IDLE, "")
        moody.active_jobs = 1
        assert moody.state is ConnectorState.ACTIVE
        moody.script["health"] = ValueError("odd")
        assert not await moody.probe()
        assert (moody.state, moody.reason) == (ConnectorState.ERROR, "ValueError: odd")
        moody.script["close"] = RuntimeError("stuck")
        await moody.stop()
        await moody.stop()
        assert (moody.state, moody.closed) == (ConnectorState.OFFLINE, 1)

    asyncio.run(life())


# --- verdicts --------------------------------------------------------------------------------------------------------


def foreign(module: str, name: str) -> Exception:
    return type(name, (RuntimeError,), {"__module__": module})("as if from a library")


@pytest.mark.parametrize(
    ("error", "failure", "retry", "cause"),
    [
        (failures.InvalidInput("x"), "invalid_input", False, Cause.JOB_FAULT),
        (failures.RefusedByService("x"), "refused", False, Cause.JOB_FAULT),
        (failures.AuthFailed("x"), "auth", False, Cause.JOB_FAULT),
        (failures.NotFound("x"), "not_found", False, Cause.JOB_FAULT),
        (failures.RateLimited("x"), "rate_limited", True, Cause.UPSTREAM),
        (failures.ServiceUnavailable("x"), "unavailable", True, Cause.UPSTREAM),
        (failures.ServiceTimeout("x"), "timeout", True, Cause.JOB_FAULT),
        (failures.OutOfMemory("x"), "out_of_memory", True, Cause.JOB_FAULT),
        (failures.GpuLost("x"), "gpu_lost", True, Cause.GPU_FAULT),
        (failures.BadResponse("x"), "bad_response", True, Cause.JOB_FAULT),
        (failures.ProcessCrashed("x"), "worker_crashed", True, Cause.WORKER_CRASHED),
        (MemoryError(), "out_of_memory", True, Cause.JOB_FAULT),
        (TimeoutError(), "timeout", True, Cause.JOB_FAULT),
        (ConnectionRefusedError(), "unavailable", True, Cause.JOB_FAULT),
        (foreign("torch.cuda", "OutOfMemoryError"), "out_of_memory", True, Cause.JOB_FAULT),
        (foreign("torch", "AcceleratorError"), "gpu_lost", True, Cause.GPU_FAULT),
        (foreign("mine", "OutOfMemoryError"), "internal", True, Cause.JOB_FAULT),
        (ValueError("out of memory"), "internal", True, Cause.JOB_FAULT),
        (KeyError("timeout"), "internal", True, Cause.JOB_FAULT),
        (SystemExit(1), "internal", True, Cause.JOB_FAULT),
        (BlobMissing("x"), "not_found", False, Cause.JOB_FAULT),
        (Refused(FailureClass.UNAVAILABLE, "disk full", 30.0), "unavailable", True, Cause.UPSTREAM),
    ],
)
def test_verdicts_go_by_type(error: BaseException, failure: str, retry: bool, cause: Cause) -> None:
    verdict = judge(error)
    assert (verdict.failure.value, verdict.retry, verdict.cause) == (failure, retry, cause)


def test_a_verdict_keeps_what_was_given_and_shows_where_it_happened() -> None:
    verdict = judge(failures.RateLimited("slow", retry_after_s=7.0, evidence="headers"))
    assert (verdict.retry_after_s, verdict.evidence, verdict.message) == (7.0, "headers", "slow")
    try:
        raise KeyError("missing")
    except KeyError as error:
        assert "test_a_verdict_keeps" in judge(error).evidence


def test_evidence_begins_where_an_operators_code_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "fails_here.py").write_text("def outer(payload, context):\n    return {}[payload]\n")
    loaded = callables.load("fails_here:outer", [str(tmp_path)])

    def daemon() -> str:
        try:
            callables.run(loaded, "missing", None)  # type: ignore[arg-type]
        except KeyError as error:
            return judge(error).evidence
        return ""

    # Called as the daemon calls it: all that lies above the operator's code is the daemon's own.
    lines = FunctionType(daemon.__code__, {**globals(), "__name__": "empd.pretended"}, closure=daemon.__closure__)()
    assert lines.splitlines()[0] == "Traceback (most recent call last):"
    assert "fails_here.py" in lines.splitlines()[1]
    assert "callables.py" not in lines


@given(st.text(min_size=1, max_size=20).map(lambda text: text * 3000))
def test_verdicts_are_bounded(text: str) -> None:
    verdict = judge(failures.BadResponse(text, evidence=text))
    assert len(verdict.message) <= MESSAGE_CHARS_MAX
    assert len(verdict.evidence) <= EVIDENCE_CHARS_MAX


# --- context ---------------------------------------------------------------------------------------------------------


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(), st.lists, max_leaves=9))
def test_the_payload_is_decoded_by_its_encoding(value: Any) -> None:
    assert context_of(msgspec.msgpack.encode(value)).payload == value
    assert context_of(msgspec.json.encode(value), encoding="json").payload == value


def test_bytes_and_blobs_are_payloads_too() -> None:
    assert context_of(b"raw", encoding="bytes").payload == b"raw"
    context = context_of(BlobRef("0" * 32, 5, 0, True, "json"))
    context.port.blob = b'{"a": 1}'
    assert context.payload == {"a": 1}
    assert context.payload_bytes == bytes(context.payload_view()) == b'{"a": 1}'
    assert asyncio.run(context_of(b'"x"', encoding="json").load()) == "x"


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\x01"])
def test_an_undecodable_payload_is_invalid_input(data: bytes) -> None:
    with pytest.raises(failures.InvalidInput):
        _ = context_of(data).payload


@given(st.lists(st.floats(-2, 2), min_size=1))
def test_progress_never_falls_and_stays_within_bounds(fractions: list[float]) -> None:
    context = context_of()
    for fraction in fractions:
        context.progress(fraction)
    said = [entry[1] for entry in context.port.said]
    assert said == sorted(said)
    assert all(0 <= fraction <= 1 for fraction in said)


def test_checkpoints_are_bounded_and_become_the_last_one() -> None:
    context = context_of()
    with pytest.raises(ValueError, match="at most"):
        asyncio.run(context.checkpoint(b"x" * (CHECKPOINT_BYTES_MAX + 1)))
    assert context.last_checkpoint is None
    asyncio.run(context.checkpoint(b"here"))
    assert context.last_checkpoint == b"here"


def test_stopping_is_seen_by_flag_and_by_waiting() -> None:
    async def wait() -> None:
        early, late = context_of(), context_of()
        waiting = asyncio.create_task(early.wait_cancelled())
        await asyncio.sleep(0)
        assert not early.cancelled
        early.mark_stopping("cancelled")
        late.mark_stopping("timeout")
        await asyncio.wait_for(asyncio.gather(waiting, late.wait_cancelled()), 5)
        assert early.cancelled

    asyncio.run(wait())


def test_a_deadline_is_on_the_contexts_clock() -> None:
    context = context_of()
    assert context.deadline_s is None
    context.timeout_s = 4.0
    assert context.deadline_s == 5.0
    assert context.clock() > 0


def test_a_thread_uses_the_context_by_way_of_the_loop() -> None:
    async def run() -> None:
        context = context_of({"x": 1})
        outside = SyncContext(context, ThreadBridge(asyncio.get_running_loop()))

        def work() -> list[Any]:
            outside.progress(0.5)
            outside.log("line", a=1)
            outside.partial(7)
            outside.checkpoint(b"c")
            return [outside.payload, outside.state_get("k"), outside.state_set("k", b"", 4), outside.last_checkpoint]

        assert await asyncio.to_thread(work) == [{"x": 1}, (3, b"k"), 5, b"c"]
        assert context.port.said == [
            ("progress", 0.5, "", 0, 0),
            ("log", "line a=1", True),
            ("partial", 7),
            ("checkpoint", b"c"),
        ]
        assert (outside.job_id, outside.epoch, outside.attempt, dict(outside.secrets)) == (1, 9, 1, {"KEY": "value"})

    asyncio.run(run())


# --- threads, pool words, simulation ---------------------------------------------------------------------------------


def test_a_cancelled_wait_for_a_thread_goes_on_until_the_thread_has_ended() -> None:
    async def run() -> None:
        threads = WorkThreads("t", 1)
        release, entered = threading.Event(), threading.Event()

        def work() -> str:
            entered.set()
            release.wait(60)
            return "ended"

        task = asyncio.create_task(threads.finish(work))
        await asyncio.to_thread(entered.wait, 20)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        release.set()
        assert await task == "ended"
        with pytest.raises(RuntimeError, match="StopIteration"):
            await threads.submit(lambda: next(iter(())))
        threads.close()

    asyncio.run(run())


def test_deaths_are_told_in_words() -> None:
    assert [how_it_died(status) for status in (3, -9, -11, -200)] == [
        "exit status 3",
        "SIGKILL",
        "SIGSEGV",
        "signal 200",
    ]


def test_the_simulation_takes_steps_and_echoes() -> None:
    answer, context = simulate({"duration_s": 0.01, "steps": 4, "echo": True}, {"any": "thing"})
    assert answer == {"steps": 4, "echo": {"any": "thing"}}
    assert [entry[1] for entry in context.port.said] == [0.25, 0.5, 0.75, 1.0]
    assert simulate({}, {"steps": 2})[0] == {"steps": 2}
    assert simulate({"echo": True}, [1])[0] == {"echo": [1], "steps": 1}


def test_simulated_failures_depend_on_job_and_attempt_alone() -> None:
    def fails(job_id: int, attempt: int) -> bool:
        try:
            simulate({"failure_rate": 0.3}, job_id=job_id, attempt=attempt)
        except failures.ConnectorError:
            return True
        return False

    first = [fails(job_id, 1) for job_id in range(300)]
    assert first == [fails(job_id, 1) for job_id in range(300)]
    assert 60 < sum(first) < 120
    assert first != [fails(job_id, 2) for job_id in range(300)]


def test_faults_strike_as_often_as_asked() -> None:
    with pytest.raises(failures.ConnectorError):
        simulate({}, {"fault": "fail", "times": 2}, attempt=2)
    assert simulate({}, {"fault": "fail", "times": 2}, attempt=3)[0] == {"steps": 1}
    with pytest.raises(failures.RefusedByService):
        simulate({"fault": "refuse"})
    with pytest.raises(failures.InvalidInput):
        simulate({}, {"fault": "sing"})


@pytest.mark.parametrize("payload", [{"duration_s": "long"}, {"steps": None}, {"fault": "leak", "bytes": "many"}])
def test_a_wish_that_makes_no_sense_is_invalid_input(payload: Any) -> None:
    with pytest.raises(failures.InvalidInput):
        simulate({}, payload)


def test_a_leak_is_kept() -> None:
    connector = registry.build(SimulationConnector, {}, Site(service="s"))
    for _ in range(3):
        context = context_of({"fault": "leak", "bytes": 1 << 20})
        asyncio.run(connector.process(context.job, context))
    assert connector.leaked_bytes == 3 << 20


def test_the_room_brings_no_heavy_module() -> None:
    import subprocess

    code = (
        "import sys, empd.worker.process, empd.connectors.service.simulation; "
        "print([m for m in ('aiohttp', 'rich', 'numpy', 'psutil', 'sqlite3', 'opentelemetry') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


ROOT = Path(__file__).resolve().parents[2]
