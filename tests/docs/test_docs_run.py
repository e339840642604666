"""The README's code, run as it is written against real daemons."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from docs_pages import README, blocks, section, spans

from empd.cli.codes import ExitCode
from empd.errors import EmpdError
from empd.mapping import EMBEDDED
from empd.settings import SETTINGS
from tests.box import Box, noop_mapping, wait_until

RUN_S_MAX = 60


class Newcomer:
    """A directory with a virtual environment, and a daemon that commands find by themselves."""

    def __init__(self, daemon: Box) -> None:
        self.daemon = daemon
        self.home = daemon.home
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EMPD_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        places = {"EMPD_STATE_DIR": str(daemon.state_dir), "EMPD_RUNTIME_DIR": str(daemon.runtime_dir)}
        self.environment = {**kept, **places, "PATH": path, "EMPD_HTTP": "127.0.0.1:0"}
        (self.home / ".venv").symlink_to(sys.prefix)

    def runs(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """A command to its end, in the directory."""
        return subprocess.run(
            command,
            cwd=self.home,
            env=self.environment | more,
            capture_output=True,
            text=True,
            timeout=RUN_S_MAX,
            check=False,
        )


@pytest.fixture
def newcomer(box: Callable[..., Box]) -> Newcomer:
    """Beside the daemon that `empd run` starts without any file."""
    return Newcomer(box(EMBEDDED))


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A short path: sockets lie in it."""
    directory = Path(tempfile.mkdtemp(prefix="empd-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def test_the_first_python_gives_an_id_and_a_result(newcomer: Newcomer) -> None:
    ended = newcomer.runs(sys.executable, "-c", blocks("python")[0])
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.fullmatch(r"[0-9a-z]{13} \{'steps': 4\}\n", ended.stdout)


def test_the_first_shell_gives_a_result_and_the_status(newcomer: Newcomer) -> None:
    ended = newcomer.runs("bash", "-ec", blocks("sh")[1])
    assert (ended.returncode, ended.stderr) == (0, "")
    result, _, status = ended.stdout.partition("\n")
    assert json.loads(result) == {"steps": 4}
    assert "simulation" in status
    assert newcomer.daemon.http() in status


def test_the_request_over_http_gives_a_result(newcomer: Newcomer) -> None:
    (block,) = [block for block in blocks("sh") if block.startswith("curl ")]
    _, _, url, flag, body = shlex.split(block)
    usual = f"http://{SETTINGS['http'].default}"
    assert flag == "-d"
    assert url.startswith(usual)
    request = urllib.request.Request(newcomer.daemon.http() + url.removeprefix(usual), body.encode())
    with urllib.request.urlopen(request, timeout=RUN_S_MAX) as answer:
        found = json.load(answer)
    assert (answer.status, found["state"], found["result"]) == (200, "completed", {"steps": 4})


def test_a_function_becomes_a_service(elsewhere: Path) -> None:
    """The two files, the command that starts the daemon, the command that uses it."""
    text = section("A service of your own")
    (module,) = blocks("python", text)
    (mapping,) = blocks("json", text)
    shown = spans(text)
    start = next(line for line in shown if line.startswith("empd run "))
    submit = next(line for line in shown if line.startswith("empd submit "))
    daemon = Box(home=elsewhere)
    (elsewhere / "mymodule.py").write_text(module)
    (elsewhere / "mapping.json").write_text(mapping)
    newcomer = Newcomer(daemon)
    with contextlib.closing(daemon):
        with daemon.log_path.open("wb") as log:
            program = shutil.which("empd", path=newcomer.environment["PATH"])
            assert program is not None
            command = [program, *shlex.split(start)[1:]]
            daemon.process = subprocess.Popen(
                command, cwd=elsewhere, env=newcomer.environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(daemon.is_ready, "the daemon to be ready")
        ended = newcomer.runs("bash", "-ec", submit)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert f"`{json.dumps(json.loads(ended.stdout))}`" in text


def test_exit_codes_are_what_the_table_says(box: Callable[..., Box]) -> None:
    """As a script meets them."""
    daemon = box(EMBEDDED)
    newcomer = Newcomer(daemon)
    simulate = ["empd", "submit", "simulation"]
    assert newcomer.runs(*simulate, '{"fault": "refuse"}', "--wait").returncode == ExitCode.FAILED
    assert newcomer.runs(*simulate, "{x").returncode == ExitCode.USAGE
    assert newcomer.runs("empd", "submit", "nobody").returncode == ExitCode.REFUSED
    late = newcomer.runs(*simulate, '{"duration_s": 20}', "--wait-timeout", "0.1")
    assert late.returncode == ExitCode.TIMED_OUT
    daemon.kill()
    nobody = newcomer.runs("empd", "status")
    assert nobody.returncode == ExitCode.NOT_RUNNING
    assert "empd run" in nobody.stderr


# --- backup ----------------------------------------------------------------------------------------------------------


def answered(daemon: Box, timeout_s: float = 1.0) -> dict[str, Any]:
    """The daemon's status; empty while it does not answer."""
    with contextlib.suppress(EmpdError), daemon.client(connect_timeout_s=timeout_s) as client:
        return client.status()
    return {}


def echoed(payload: Any) -> dict[str, Any]:
    """What the no-op service returns."""
    return {"steps": 1, "echo": payload}


def listed(daemon: Box, state: str) -> list[str]:
    """The ids of jobs in a state, as the API lists them."""
    with urllib.request.urlopen(f"{daemon.http()}/v1/jobs?state={state}", timeout=RUN_S_MAX) as answer:
        return [job["id"] for job in json.load(answer)["jobs"]]


def test_a_backup_of_a_running_daemon_has_everything(box: Callable[..., Box], elsewhere: Path) -> None:
    """The README's block, beside a daemon with jobs that ended, wait, and have large payloads; then a restore."""
    (block,) = [block for block in blocks("sh") if "BACKUP" in block]
    daemon = box(noop_mapping())
    large = b"\x00\xff" * 100_000
    with daemon.client() as client:
        ended = client.submit("noop", {"n": "ended"})
        assert ended.result(60) == echoed({"n": "ended"})
        wait_until(lambda: ended.id in listed(daemon, "completed"), "the job in history")
        client.operate("drain")
        waiting = [client.submit("noop", {"n": n}) for n in range(20)]
        blob = client.submit("noop", large)
        assert client.flush(10)
        ids = [handle.id for handle in waiting]
        backup = elsewhere / "backup"
        copied = Newcomer(daemon).runs("bash", "-c", block, BACKUP=str(backup))
        assert copied.returncode == 0, copied.stderr
        assert "ok: every row is whole, none is missing" in copied.stdout
        assert backup.stat().st_mode & 0o777 == 0o700
    assert large in [path.read_bytes() for path in (backup / "spool").glob("*/*")]
    daemon.kill()

    restored = Box(noop_mapping(), home=elsewhere)
    restored.state_dir.mkdir(mode=0o700)
    for name in ("journal.db", "history.db", "spool"):
        (backup / name).rename(restored.state_dir / name)
    with contextlib.closing(restored):
        restored.start(wait=False)
        wait_until(lambda: len(answered(restored).get("workers", ())) == 2, "the restored daemon to have its workers")
        with restored.client() as client:
            client.operate("resume")
            assert [client.job(job_id).result(60) for job_id in ids] == [echoed({"n": n}) for n in range(20)]
            assert client.job(blob.id).result(60) == echoed(large)
            assert client.job(ended.id).result(60) == echoed({"n": "ended"})


def test_missing_rows_are_told_until_the_loss_is_accepted(box: Callable[..., Box]) -> None:
    assert "`empd run --accept-loss`" in README
    daemon = box(noop_mapping())
    early = daemon.home / "early"
    assert daemon.stop() == 0
    shutil.copytree(daemon.state_dir, early)
    daemon.restart()
    with daemon.client() as client:
        assert len(list(client.submit_many("noop", range(100)).results(60))) == 100
    assert daemon.stop() == 0
    for path in early.glob("journal.db*"):
        shutil.copy(path, daemon.state_dir)
    daemon.start(wait=False)
    wait_until(lambda: "were committed and are missing" in daemon.log(), "the log to say what is missing")
    assert answered(daemon, 0.3) == {}
    daemon.kill()
    newcomer = Newcomer(daemon)
    command = ["empd", "run", "--accept-loss", "--mapping", str(daemon.mapping_path)]
    with daemon.log_path.open("ab") as log:
        daemon.process = subprocess.Popen(
            command, env=newcomer.environment, stdout=log, stderr=log, start_new_session=True
        )
    wait_until(daemon.is_ready, "the daemon to be ready again")
    with daemon.client() as client:
        assert client.submit("noop", 1).result(60) == echoed(1)
