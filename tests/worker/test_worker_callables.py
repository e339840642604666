"""Every kind of Python callable in a real worker: values, failures, what it may say, cancel, isolation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from worker_broker import BrokerDouble, pack, python, until

from empd.errors import FailureClass
from empd.job import Cause
from empd.lifecycle import Notice
from empd.memory.arena import Arena
from empd.payload import BlobRef
from empd.wire import frames
from empd.wire.telemetry import JobLog, JobPartial, JobProgress

HERE = {"python_path": [str(Path(__file__).parent)]}
M = "operators_module"


def run_one(broker: BrokerDouble, start, target: str, payload, **spec):
    extra = spec.pop("extra", {})
    worker = start({"s": python(f"{M}:{target}", **extra)}, settings=HERE, **spec).ready()
    return worker, broker.assign("s", [payload], timeout_s=60.0)[0]


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize(
    ("target", "payload", "value"),
    [
        ("square", {"x": 7}, {"value": 49}),
        ("square_async", {"x": 7}, 49),
        ("counting", 4, {"counted": 4}),
        ("counting_async", 4, {"counted": 4}),
        ("AsyncModel", None, True),
    ],
)
def test_every_kind_gives_its_value(broker: BrokerDouble, start, target, payload, value, isolation) -> None:
    _, claim = run_one(broker, start, target, payload, extra={"isolation": isolation})
    assert broker.result(claim) == value


def test_a_plain_function_of_one_argument_runs_in_a_thread_of_its_own(broker: BrokerDouble, start) -> None:
    _, claim = run_one(broker, start, "alone", "p")
    assert broker.result(claim) == ["p", False]


@pytest.mark.parametrize("slots", [1, 2])
def test_a_class_is_set_up_once_and_torn_down(broker: BrokerDouble, start, tmp_path: Path, slots: int) -> None:
    torn = tmp_path / "torn"
    service = python(f"{M}:Model", config={"options": {"scale": 3}})
    worker = start({"s": service}, slots, settings=HERE, environment={"TEARDOWN_FILE": str(torn)}).ready()
    answers = [broker.result(broker.assign("s", [number])[0]) for number in (1, 2, 3)]
    assert [answer[:2] for answer in answers] == [[3, 1], [6, 1], [9, 1]]
    in_worker = {answer[2] for answer in answers} == {worker.process.pid}
    assert in_worker == (slots == 1)
    worker.say(Notice.STOP)
    assert worker.ended() == 0
    assert torn.read_text() == "done"


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize(
    ("payload", "failure", "retry"),
    [
        ({"raise": "value"}, "internal", True),
        ({"raise": "memory"}, "out_of_memory", True),
        ({"raise": "timeout"}, "timeout", True),
        ({"raise": "refused"}, "refused", False),
        ({"raise": "exit"}, "internal", True),
    ],
)
def test_exceptions_become_verdicts_and_the_worker_goes_on(
    broker: BrokerDouble, start, payload, failure, retry, isolation
) -> None:
    _, claim = run_one(broker, start, "bad", payload, extra={"isolation": isolation})
    failed = broker.failure(claim)
    assert (failed.error.failure, failed.retry, failed.cause) == (failure, retry, Cause.JOB_FAULT)
    evidence = "policy 7" if failure == "refused" else "in bad"
    assert evidence in failed.error.evidence
    assert broker.failure(broker.assign("s", [payload])[0])


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_result_that_cannot_be_encoded_is_a_bad_response(broker: BrokerDouble, start, isolation) -> None:
    _, claim = run_one(broker, start, "unencodable", None, extra={"isolation": isolation})
    failed = broker.failure(claim)
    assert (failed.error.failure, failed.retry) == (FailureClass.BAD_RESPONSE, False)
    assert "object" in failed.error.message


def test_a_payload_that_cannot_be_decoded_is_invalid_input(broker: BrokerDouble, start) -> None:
    start({"s": python(f"{M}:square")}, settings=HERE).ready()
    for encoding in ("msgpack", "json"):
        claim = broker.assign("s", [b"\xc1{"], carried=True, encoding=encoding)[0]
        failed = broker.failure(claim)
        assert (failed.error.failure, failed.retry) == (FailureClass.INVALID_INPUT, False)
    claim = broker.assign("s", [b'{"x": 5}'], carried=True, encoding="json")[0]
    assert broker.result(claim) == {"value": 25}


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_large_payloads_and_results_go_through_the_arena(broker: BrokerDouble, start, isolation) -> None:
    arena = Arena(broker.directory / "state" / "spool", broker.directory / "volatile")
    _, claim = run_one(broker, start, "large", 3 << 20, extra={"isolation": isolation})
    ref = broker.result(claim)
    assert isinstance(ref, BlobRef)
    assert ref.durable
    whole = arena.read(ref)
    assert whole == (b"z" * (3 << 20) if ref.encoding == "bytes" else pack(b"z" * (3 << 20)))
    start({"s": python(f"{M}:alone", isolation=isolation)}, settings=HERE, name="cpu-1").ready()
    big = arena.put(pack("y" * 100_000), durable=True, encoding="msgpack")
    claim = broker.assign("s", [big], carried=True)[0]
    answer = broker.result(claim)
    assert isinstance(answer, BlobRef)
    assert arena.read(answer) == pack(["y" * 100_000, isolation == "process"])


@pytest.mark.parametrize(
    ("target", "isolation"),
    [("talk", "thread"), ("talk", "process"), ("talk_async", "auto"), ("talk_async", "process")],
)
def test_what_a_context_says_arrives(broker: BrokerDouble, start, target: str, isolation: str) -> None:
    _, claim = run_one(broker, start, target, None, extra={"isolation": isolation})
    checkpoint = broker.wait(frames.Checkpoint)[0]
    assert (checkpoint.id, checkpoint.epoch, checkpoint.data) == (*claim, b"point")
    broker.send(frames.Stored(checkpoint.request))
    broker.send(frames.StateValue(broker.wait(frames.StateGet)[0].request, 4, b"now"))
    wanted = broker.wait(frames.StateSet)[0]
    assert (wanted.id, wanted.epoch, wanted.key, wanted.expected_version, wanted.data) == (*claim, "cursor", 4, b"next")
    broker.send(frames.Stored(wanted.request, 5))
    assert broker.result(claim) == [b"point", 5, b"now", 1, claim[0], True]
    assert until(lambda: broker.heard(JobLog))[0].text == "a line n=1"
    progress = until(lambda: broker.heard(JobProgress))[-1]
    assert (progress.fraction, progress.message, progress.step, progress.steps) == (0.5, "half way", 1, 2)
    assert until(lambda: broker.heard(JobPartial))[0].data == pack({"so": "far"})


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_stale_state_is_the_jobs_error(broker: BrokerDouble, start, isolation: str) -> None:
    _, claim = run_one(broker, start, "talk", None, extra={"isolation": isolation})
    broker.send(frames.Stored(broker.wait(frames.Checkpoint)[0].request))
    broker.send(frames.StateValue(broker.wait(frames.StateGet)[0].request, 4, b"now"))
    broker.send(frames.Error(broker.wait(frames.StateSet)[0].request, "refused", "version is 9"))
    assert "version is 9" in broker.failure(claim).error.message


def test_the_next_attempt_gets_the_checkpoint(broker: BrokerDouble, start) -> None:
    start({"s": python(f"{M}:earlier")}, settings=HERE).ready()
    assert broker.result(broker.assign("s", [None], checkpoint=b"before", attempt=2)[0]) == b"before"


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_jobs_log_is_bounded(broker: BrokerDouble, start, isolation: str) -> None:
    worker = start(
        {"s": python(f"{M}:chatty", isolation=isolation)}, settings={**HERE, "job_log_bytes_max": 10_000}
    ).ready()
    claim = broker.assign("s", [5_000])[0]
    assert broker.result(claim) is None
    text = until(lambda: joined if "not kept" in (joined := logged(broker, claim)) else None)
    assert text.count("x" * 99) == 100
    assert worker.process.poll() is None


def logged(broker: BrokerDouble, claim: tuple[int, int]) -> str:
    return "\n".join(log.text for log in broker.heard(JobLog) if (log.id, log.epoch) == claim)


def test_progress_is_coalesced(broker: BrokerDouble, start) -> None:
    _, claim = run_one(broker, start, "counting", 5_000)
    broker.result(claim)
    heard = until(lambda: found if (found := broker.heard(JobProgress)) and found[-1].message == "nearly" else None)
    assert len(heard) < 30
    assert [message.fraction for message in heard] == sorted(message.fraction for message in heard)


@pytest.mark.parametrize(
    ("target", "isolation"),
    [
        ("attentive", "thread"),
        ("nap_async", "auto"),
        ("nap_generator", "thread"),
        ("nap_async_generator", "auto"),
        ("nap", "process"),
        ("nap_async", "process"),
        ("nap_generator", "process"),
    ],
)
@pytest.mark.parametrize("failure", ["cancelled", "timeout"])
def test_stop_reaches_every_kind(
    broker: BrokerDouble, start, tmp_path: Path, target: str, isolation: str, failure: str
) -> None:
    _, claim = run_one(broker, start, target, str(tmp_path), extra={"isolation": isolation})
    until((tmp_path / "began").exists, "the job's begin")
    broker.send(frames.Stop(*claim, failure))
    broker.send(frames.Stop(*claim, failure))
    if failure == "cancelled":
        until(lambda: claim in broker.cancelled(), "the cancel")
    else:
        assert broker.failure(claim).error.failure == FailureClass.TIMEOUT
    # A process is killed; in the worker's own the callable's `finally` has run before anything is reported.
    assert (tmp_path / "ended").exists() == (target != "attentive" and isolation != "process")
    assert len(broker.of(frames.Done)) == 1


def test_a_call_in_a_thread_is_not_reported_before_it_has_stopped(broker: BrokerDouble, start, tmp_path: Path) -> None:
    worker, claim = run_one(broker, start, "nap", str(tmp_path))
    until((tmp_path / "began").exists, "the job's begin")
    broker.send(frames.Stop(*claim, "cancelled"))
    before = worker.board.read(1).activity.heartbeat_mono_ns
    until(lambda: worker.board.read(1).activity.heartbeat_mono_ns > before + 500_000_000, "heartbeats")
    assert broker.of(frames.Done) == []
    assert worker.board.read(1).activity.job_id == claim[0]


@pytest.mark.parametrize(
    ("how", "words"), [("kill", "SIGKILL"), ("segv", "SIGSEGV"), ("abort", "SIGABRT"), ("exit", "exit status 5")]
)
def test_a_pool_process_that_dies_fails_its_own_job_only(broker: BrokerDouble, start, tmp_path, how, words) -> None:
    worker = start({"s": python(f"{M}:die"), "nap": python(f"{M}:nap")}, 3, settings=HERE).ready()
    neighbour = broker.assign("nap", [str(tmp_path)])[0]
    until((tmp_path / "began").exists, "the neighbour's begin")
    failed = broker.failure(broker.assign("s", [how])[0])
    assert (failed.error.failure, failed.cause, failed.retry) == ("worker_crashed", Cause.WORKER_CRASHED, True)
    assert words in failed.error.message
    assert broker.result(broker.assign("s", ["none"])[0]) != worker.process.pid
    assert neighbour not in broker.failed()
    broker.send(frames.Stop(*neighbour, "cancelled"))
    until(lambda: neighbour in broker.cancelled(), "the neighbour's end")


def test_pool_processes_are_reused_and_die_with_the_worker(broker: BrokerDouble, start) -> None:
    worker = start({"s": python(f"{M}:die")}, 2, settings=HERE).ready()
    pids = {broker.result(broker.assign("s", ["none"])[0]) for _ in range(5)}
    assert len(pids) == 1
    worker.process.kill()
    worker.process.wait()
    until(lambda: not Path(f"/proc/{pids.pop()}").exists() if pids else True, "the pool's end")


def test_an_import_error_is_a_reason_and_reload_tries_again(broker: BrokerDouble, start, tmp_path: Path) -> None:
    module = tmp_path / "later_module.py"
    module.write_text("import no_such_thing")
    worker = start(
        {"s": python("later_module:f"), "ok": python(f"{M}:square")},
        settings={"python_path": [*HERE["python_path"], str(tmp_path)]},
    ).ready()
    assert broker.result(broker.assign("ok", [{"x": 2}])[0]) == {"value": 4}
    offers = until(lambda: latest_offers(broker))
    assert offers["s"].slots == 0
    assert "no_such_thing" in offers["s"].reason
    module.write_text("def f(payload, context):\n    return 'here'\n")
    os.utime(module, (1, 1))
    worker.say(Notice.RELOAD)
    until(lambda: latest_offers(broker)["s"].slots == 1, "the offer")
    assert broker.result(broker.assign("s", [None])[0]) == "here"


def test_a_reload_while_a_model_loads_does_not_load_it_twice(broker: BrokerDouble, start, tmp_path: Path) -> None:
    (tmp_path / "loading_module.py").write_text(
        "import asyncio, pathlib\n"
        "HERE = pathlib.Path(__file__).parent\n"
        "class Model:\n"
        "    async def setup(self):\n"
        "        with (HERE / 'loads').open('a') as loads:\n"
        "            loads.write('+')\n"
        "        while not (HERE / 'go').exists():\n"
        "            await asyncio.sleep(0.2)\n"
        "    def process(self, payload, context):\n"
        "        return 'here'\n"
    )
    loads = tmp_path / "loads"
    worker = start({"s": python("loading_module:Model")}, settings={"python_path": [str(tmp_path)]})
    until(loads.exists, "the model to load")
    worker.say(Notice.RELOAD)
    (tmp_path / "go").touch()
    until(lambda: latest_offers(broker)["s"].slots == 1, "the offer")
    assert broker.result(broker.assign("s", [None])[0]) == "here"
    assert loads.read_text() == "+"


def latest_offers(broker: BrokerDouble) -> dict[str, frames.ServiceOffer]:
    said = broker.of(frames.Capacity) or broker.of(frames.WorkerHello)
    return {offer.service: offer for offer in said[-1].offers}


def test_required_variables_are_secrets_or_a_reason(broker: BrokerDouble, start) -> None:
    services = {
        "with": {**python(f"{M}:secret"), "required_env": ["THE_KEY"]},
        "without": {**python(f"{M}:secret"), "required_env": ["NOT_THERE"]},
    }
    worker = start(services, settings=HERE, environment={"THE_KEY": "k-123"}).ready()
    assert broker.result(broker.assign("with", [None])[0]) == {"THE_KEY": "k-123"}
    assert "NOT_THERE" in latest_offers(broker)["without"].reason
    assert "k-123" not in worker.stderr()


def test_secrets_are_hidden_wherever_a_connector_speaks(broker: BrokerDouble, start) -> None:
    services = {
        "tells": {**python(f"{M}:tells_secret"), "required_env": ["THE_KEY"]},
        "fails": {**python(f"{M}:TellsInSetup"), "required_env": ["THE_KEY"]},
    }
    worker = start(services, settings=HERE, environment={"THE_KEY": "k-1234567"}).ready()
    failed = broker.failure(broker.assign("tells", [None])[0])
    assert "the key is ***" in failed.error.message
    assert "k-1234567" not in failed.error.evidence
    assert until(lambda: broker.heard(JobLog))[0].text == "using ***"
    assert "***" in latest_offers(broker)["fails"].reason
    assert "health_check" in worker.stderr()
    assert "k-1234567" not in worker.stderr()


def test_abilities_are_found_by_class(broker: BrokerDouble, start, tmp_path: Path) -> None:
    able = {"connector": "Able", "api_config": {"directory": str(tmp_path)}}
    start({"s": able}, connectors={"Able": {"path": f"{M}:Able"}}, settings=HERE).ready()
    assert latest_offers(broker)["s"].models == ["sdxl"]
    assert broker.result(broker.assign("s", ["x"], checkpoint=b"upstream-7", attempt=2)[0]) == "resumed upstream-7"
    claim = broker.assign("s", ["x"])[0]
    until((tmp_path / "began").exists, "the job's begin")
    broker.send(frames.Stop(*claim, "cancelled"))
    until(lambda: claim in broker.cancelled(), "the cancel")
    assert (tmp_path / "interrupted").exists()
