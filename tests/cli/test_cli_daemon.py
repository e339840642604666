"""Every command against a real daemon, as a newcomer would type it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cli_box import Box, eventually

from empd.cli.codes import ExitCode
from empd.cli.output import EVIDENCE_LINES


def test_run_says_in_one_line_where_it_listens(box: Box) -> None:
    first = (box.directory / "daemon.log").read_text().splitlines()[0]
    assert str(box.directory / "run/empd.sock") in first
    assert str(box.directory / "state") in first


def test_submit_prints_the_id_and_job_shows_it(box: Box) -> None:
    ran = box.empd("submit", "echo", '{"x": 1}', "--label", "who=me", "--priority", "70")
    assert ran.code == ExitCode.OK
    job_id = ran.out.strip()
    assert len(job_id) == 13
    document = eventually(lambda: (d := box.empd("job", job_id, "--json").json)["state"] == "completed" and d)
    assert document["labels"] == {"who": "me"}
    assert document["priority"] == 70
    assert document["result"] == {"steps": 1, "echo": {"x": 1}}
    assert "state:        completed" in box.empd("job", job_id.upper()).out
    assert json.loads(box.empd("job", job_id, "--result").out) == {"steps": 1, "echo": {"x": 1}}


def test_submit_wait_prints_the_result_alone(box: Box, tmp_path: Path) -> None:
    assert box.empd("submit", "echo", "1", "--wait").json == {"steps": 1, "echo": 1}
    assert box.empd("submit", "echo", "-", "-w", stdin='{"y": 2}').json == {"steps": 1, "echo": {"y": 2}}
    target = tmp_path / "result.json"
    assert box.empd("submit", "echo", "1", "-o", str(target)).out == ""
    assert json.loads(target.read_text()) == {"steps": 1, "echo": 1}


def test_submit_file_and_key(box: Box, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(300_000))
    first = box.empd("submit", "echo", "--file", str(tmp_path / "large"), "--key", "once")
    again = box.empd("submit", "echo", "--file", str(tmp_path / "large"), "--key", "once")
    assert first.code == again.code == ExitCode.OK
    document = box.empd("submit", "echo", "--file", str(tmp_path / "large"), "--wait", "--json").json
    assert document["state"] == "completed"


def test_submit_many(box: Box) -> None:
    ran = box.empd("submit", "echo", "1", "--count", "700", "--wait", "--json")
    assert ran.code == ExitCode.OK
    assert ran.json["ends"] == {"completed": 700}
    ids = box.empd("submit", "echo", "1", "--count", "3").out.split()
    assert len(set(ids)) == 3
    ran = box.empd("submit", "simulation", '{"fault": "fail"}', "--retries", "0", "--count", "3", "--wait")
    assert (ran.code, ran.out.startswith("3 failed in ")) == (ExitCode.FAILED, True)
    assert re.fullmatch(r"the first that failed: job \w{13}: internal: simulated failure\n", ran.err)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["submit", "ecko", "1"], ExitCode.REFUSED, "did you mean echo?"),
        (["submit", "echo", "{oops"], ExitCode.USAGE, "PAYLOAD is not JSON"),
        (["submit", "echo", "--file", "/nowhere/at/all"], ExitCode.USAGE, "/nowhere/at/all: No such file"),
        (["submit", "echo", "1", "--file", "/etc/hostname"], ExitCode.USAGE, "not both"),
        (["submit", "echo", "--label", "nonsense"], ExitCode.USAGE, "NAME=VALUE"),
        (["submit", "echo", "--not-before", "soon"], ExitCode.USAGE, "ISO 8601"),
        (["submit", "simulation", '{"fault": "fail"}', "--retries", "0", "-w"], ExitCode.FAILED, "simulated failure"),
        (["submit", "simulation", '{"duration_s": 9}', "--wait-timeout", "0.2"], ExitCode.TIMED_OUT, "it goes on"),
        (["job", "nonsense"], ExitCode.USAGE, "a job id has 13 characters"),
        (["cancel"], ExitCode.USAGE, "name jobs by id, or give filters"),
        (["drain", "gpu-gpu7"], ExitCode.USAGE, "did you mean gpu-gpu"),
        (["jobs", "--state", "sleeping"], ExitCode.USAGE, "waiting"),
        (["status", "--endpoint", "nonsense"], ExitCode.USAGE, "ipc://PATH"),
        (["status", "--endpoint", "ipc:///tmp/empd-none/empd.sock"], ExitCode.NOT_RUNNING, "no empd answers"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(box: Box, arguments: list[str], code: int, said: str) -> None:
    ran = box.empd(*arguments)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
    assert ran.err.startswith("empd: ")
    assert ran.err.count("\n") == 1


def test_jobs_filters_and_history(box: Box) -> None:
    ids = box.empd("submit", "simulation", '{"duration_s": 60}', "--count", "6", "--label", "set=a").out.split()
    listed = box.empd("jobs", "--label", "set=a", "--json").json["jobs"]
    assert sorted(row["id"] for row in listed) == sorted(ids)
    assert len(box.empd("jobs", "--label", "set=a", "--limit", "2", "--json").json["jobs"]) == 2
    would = box.empd("cancel", "--label", "set=a", "--dry-run", "--json").json
    assert sorted(would["would_cancel"]) == sorted(ids)
    stopped = box.empd("cancel", "--label", "set=a", "--json").json
    assert sorted(stopped["cancelled"] + stopped["cancelling"]) == sorted(ids)
    eventually(lambda: not box.empd("jobs", "--label", "set=a", "--json").json["jobs"])

    def ended() -> bool:
        rows = box.empd("jobs", "--state", "cancelled", "--label", "set=a", "--json").json["jobs"]
        return sorted(row["id"] for row in rows) == sorted(ids)

    eventually(ended)
    late = box.empd("cancel", ids[0])
    assert (late.code, late.out) == (ExitCode.FAILED, f"{ids[0]}  nothing to do: it is cancelled\n")
    assert box.empd("retry", ids[0]).out == f"{ids[0]}  nothing to do: it is cancelled\n"
    assert "history holds no record" in box.empd("cancel", "0000000000zzz").out
    assert ids[0] in box.empd("jobs", "--all", "--label", "set=a").out
    assert box.empd("jobs", "--label", "set=b").out == "no such jobs\n"


def test_dead_letters_and_their_retry(box: Box) -> None:
    ran = box.empd("submit", "simulation", '{"fault": "crash"}', "--wait", "--label", "will=die")
    assert ran.code == ExitCode.FAILED
    assert ran.err.count("\n") <= EVIDENCE_LINES + 2
    [row] = box.empd("dead", "--json").json["jobs"]
    assert row["state"] == "dead_lettered"
    assert [one["id"] for one in box.empd("jobs", "--state", "dead_lettered", "--json").json["jobs"]] == [row["id"]]
    assert row["error"]["failure"] == "worker_crashed"
    assert row["id"] in box.empd("dead").out
    assert box.empd("dead", row["id"]).code == ExitCode.OK
    assert box.empd("retry", row["id"], "--dry-run", "--json").json == {"would_retry": [row["id"]]}
    assert box.empd("retry", row["id"], "--json").json["retried"] == [row["id"]]
    eventually(lambda: box.empd("dead", "--json").json["jobs"])
    assert box.empd("cancel", "--state", "dead").code == ExitCode.OK


def test_a_worker_that_is_down_is_shown_with_its_last_exit_and_can_be_drained(box: Box) -> None:
    def down() -> str:
        worker = box.empd("status", "--json").json["supervisor"]["children"][-1]
        with contextlib.suppress(ProcessLookupError):
            if worker["pid"]:
                os.kill(worker["pid"], signal.SIGKILL)
        lines = [
            line for line in box.empd("status").out.splitlines() if line.split()[:2] == [worker["name"], "backoff"]
        ]
        return lines[0] if lines else ""

    line = eventually(down)
    assert "last exit: crashed, killed by SIGKILL" in line
    assert "starts again in" in line
    name = line.split()[0]
    assert box.empd("drain", name).out.startswith(f"drained: {name}; ")
    assert box.empd("resume", name).code == ExitCode.OK
    eventually(lambda: [line for line in box.empd("status").out.splitlines() if line.split()[:2] == [name, "up"]])


def test_watch_follows_a_job_to_its_end(box: Box) -> None:
    job_id = box.empd("submit", "simulation", '{"duration_s": 6, "steps": 60}').out.strip()
    ran = box.empd("watch", job_id, "--json")
    events = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.code == ExitCode.OK
    assert events[-1]["event"] == "completed"
    assert {event["job"] for event in events} == {job_id}
    assert any(event["event"] == "progress" and event["fraction"] > 0 for event in events)


def test_at_a_terminal_long_work_shows_how_far_it_is(box: Box) -> None:
    code, seen = box.at_a_terminal("submit", "simulation", '{"duration_s": 1.5, "steps": 6}', "--wait")
    assert (code, "Traceback" in seen) == (ExitCode.OK, False)
    assert "━" in seen, "a bar"
    assert '"steps": 6' in seen
    code, seen = box.at_a_terminal("submit", "echo", "1", "--count", "600", "--wait")
    assert (code, "Traceback" in seen) == (ExitCode.OK, False)
    assert re.search(r"600/600.*/s", seen)
    assert "600 completed in" in seen
    code, seen = box.at_a_terminal("watch", interrupt_at="gpu-gpu1")
    assert (code, "Traceback" in seen) == (ExitCode.INTERRUPTED, False)
    assert "2 GPUs are virtual" in seen


def test_ctrl_c_is_quiet(box: Box) -> None:
    waiting = subprocess.Popen(
        [sys.executable, "-m", "empd", "submit", "simulation", '{"duration_s": 30}', "--wait", "--label", "set=c"],
        env=box.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    eventually(lambda: box.empd("jobs", "--label", "set=c", "--json").json["jobs"])
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, out, err.strip()) == (ExitCode.INTERRUPTED, b"", b"")
    box.empd("cancel", "--label", "set=c")


def test_drain_resume_and_status_tell_the_truth(box: Box) -> None:
    eventually(lambda: box.empd("status").code == ExitCode.OK)
    assert box.empd("drain", "--wait", "--wait-timeout", "30", "--json").json == {"drained": ["*"], "held": 0}
    status = box.empd("status", "--json")
    assert status.code == ExitCode.FAILED
    assert any("drained" in problem for problem in status.json["problems"])
    assert "problem: claims are drained" in box.empd("status").out
    assert box.empd("submit", "echo", "1", "--wait-timeout", "0.3").code == ExitCode.TIMED_OUT
    assert box.empd("resume").out == "no worker is drained\n"
    assert box.empd("drain", "cpu-0", "--json").json["drained"] == ["cpu-0"]
    assert box.empd("resume", "cpu-0").code == ExitCode.OK
    assert box.empd("status").code == ExitCode.OK


def test_status_names_page_and_virtual_gpus(box: Box) -> None:
    ran = box.empd("status", "--json").json
    assert ran["page"] == f"http://{(box.directory / 'run/http').read_text().strip()}/"
    assert {"services", "workers", "jobs", "journal", "problems", "endpoint"} <= set(ran)
    assert "2 GPUs are virtual" in box.empd("status").out


def test_status_names_processes_of_the_daemon_that_are_not_ready(box: Box) -> None:
    def stays_away() -> bool:
        [web] = [c for c in json.loads(table.read_text())["children"] if c["kind"] == "web"]
        if web["pid"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(web["pid"], signal.SIGKILL)
        return bool(web["state"] == "open")  # for seconds: long enough to be asked

    table = box.directory / "run/supervisor.json"
    eventually(stays_away)
    said = box.empd("status").out
    assert "web is not ready (open) last exit: crashed, killed by SIGKILL; starts again in" in said
    eventually(lambda: "not ready" not in box.empd("status").out)


def test_reload_replaces_the_workers(box: Box) -> None:
    def pids() -> set[int]:
        return {worker["pid"] for worker in box.empd("status", "--json").json["workers"]}

    before = pids()
    assert (
        box.empd("reload").out
        == "the configuration is in force; workers are replaced one by one (--wait waits for the last)\n"
    )
    assert box.empd("reload", "--wait").out == "reloaded\n"
    eventually(lambda: len(pids()) == len(before) and not pids() & before)
    assert box.empd("submit", "echo", "1", "--wait").code == ExitCode.OK


def test_a_reload_of_a_configuration_with_mistakes_names_them_and_changes_nothing(box: Box) -> None:
    settings = box.directory / "empd.toml"
    settings.write_text('retries = "many"\nlog_lvel = "info"\n')
    try:
        ran = box.empd("reload", "--wait")
        assert (ran.code, ran.out) == (ExitCode.USAGE, "")
        lines = ran.err.splitlines()
        assert all(line.startswith("empd: not reloaded: ") for line in lines)
        assert [name for name in ("retries", "log_lvel") if name in ran.err] == ["retries", "log_lvel"]
        assert box.empd("reload", "--json").json["reload"] == "refused"
    finally:
        settings.write_text("")
    assert box.empd("reload", "--wait", "--json").json == {"reload": "done", "problems": []}
    assert box.empd("submit", "echo", "1", "--wait").code == ExitCode.OK


def test_journal_is_verified_and_exported_while_the_daemon_runs(box: Box) -> None:
    assert box.empd("submit", "echo", "1", "--wait").json == {"steps": 1, "echo": 1}
    found = box.empd("journal", "verify", "--json").json
    assert found["ok"]
    assert found["rows"] > 0
    lines = [json.loads(line) for line in box.empd("journal", "export", str(box.directory / "state")).out.splitlines()]
    assert [line["seq"] for line in lines] == list(range(lines[0]["seq"], lines[-1]["seq"] + 1))
    assert {"started", "session", "submitted", "assigned", "results"} <= {line["kind"] for line in lines}
    assert box.empd("journal", "verify", "/nowhere").code == ExitCode.FAILED


def test_a_reader_that_leaves_early_is_no_error(box: Box) -> None:
    export = subprocess.Popen(
        [sys.executable, "-m", "empd", "journal", "export"],
        env=box.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert export.stdout is not None
    assert export.stderr is not None
    export.stdout.readline()
    export.stdout.close()
    told = threading.Event()
    errors: list[bytes] = []
    threading.Thread(target=lambda: (errors.append(export.stderr.read()), told.set()), daemon=True).start()
    assert told.wait(60)
    assert errors == [b""]
    assert export.wait(60) == ExitCode.OK
