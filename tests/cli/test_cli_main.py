"""The command line without a daemon: speed, help, exit codes, configuration."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from rich.console import Console

from empd import __version__
from empd.cli import main, options, output
from empd.cli.codes import MEANINGS, ExitCode, code_of
from empd.cli.commands import COMMANDS, Lazy, closest
from empd.errors import (
    ConfigError,
    FailureClass,
    JobDead,
    JournalDamaged,
    NotRunning,
    Refused,
    ResultTimeout,
    StateLocked,
)
from empd.settings import SETTINGS


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main.run(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_imports_no_command_and_nothing_heavy() -> None:
    code = "import sys; from empd.cli import main; main.run(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"rich", "zmq", "msgspec", "aiohttp", "empd.client", "empd.cli.submit", "empd.cli.run"}


def test_help_names_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == ExitCode.OK
    for name, entry in COMMANDS.items():
        assert f"  {name} " in out
        assert entry.help in out
    for number, text in MEANINGS.items():
        assert f"{number.value}" in out
        assert text in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_says_what_it_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, name, "--help")
    assert (code, err) == (ExitCode.OK, "")
    assert f"Usage: empd {name}" in out


@pytest.mark.parametrize(
    "name", ["job", "jobs", "watch", "cancel", "retry", "dead", "status", "version", "submit", "demo"]
)
def test_reading_commands_take_json(name: str) -> None:
    command = Lazy().get_command(click.Context(Lazy()), name)
    assert command is not None
    assert "--json" in {option for parameter in command.params for option in parameter.opts}


def test_run_has_a_flag_for_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "run", "--help")
    for row in SETTINGS.values():
        assert f"  {row.flag} " in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["statsu"], "did you mean status?"),
        (["config", "chek"], "did you mean check?"),
        (["journal", "verfy"], "did you mean verify?"),
        (["zzzz"], "no command 'zzzz'"),
        (["submit"], "Missing argument 'SERVICE'"),
        (["status", "--jsn"], "--json"),
        (["connectors", "new", "painter"], "Missing option '--protocol'. Choose from: http, poll, "),
    ],
)
def test_a_wrong_word_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (ExitCode.USAGE, "")
    assert said in err
    assert err.count("\n") == 1


def test_errors_have_their_codes() -> None:
    failure = FailureClass.INTERNAL
    assert code_of(ConfigError(["a"])) == ExitCode.USAGE
    assert code_of(NotRunning("a")) == ExitCode.NOT_RUNNING
    assert code_of(Refused(failure, "a")) == ExitCode.REFUSED
    assert code_of(StateLocked("a")) == ExitCode.REFUSED
    assert code_of(ResultTimeout("a")) == ExitCode.TIMED_OUT
    assert code_of(JobDead("a", failure, "b")) == ExitCode.FAILED
    assert code_of(JournalDamaged("a")) == ExitCode.FAILED


def test_config_check_tells_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, mapping = tmp_path / "empd.toml", tmp_path / "mapping.json"
    settings.write_text('htpp = "127.0.0.1:1"\nmax_crashes = 0\n')
    mapping.write_text('{"workers": {"w": {"services": ["none"]}}, "services": {}}')
    code, out, _ = run(capsys, "config", "check", "--config", str(settings), "--mapping", str(mapping))
    assert code == ExitCode.FAILED
    for said in ("htpp", "max_crashes", f"{mapping}: "):
        assert said in out
    code, out, _ = run(capsys, "config", "check", "--config", str(settings), "--mapping", str(mapping), "--json")
    document = json.loads(out)
    assert code == ExitCode.FAILED
    assert not document["ok"]
    assert len(document["problems"]) >= 3


def test_config_sample_is_accepted_by_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, mapping = tmp_path / "empd.toml", tmp_path / "mapping.json"
    settings.write_text(run(capsys, "config", "sample")[1])
    mapping.write_text(run(capsys, "config", "sample", "mapping")[1])
    code, out, _ = run(capsys, "config", "check", "--config", str(settings), "--mapping", str(mapping))
    assert code == ExitCode.OK
    assert out.startswith("ok: ")
    for which in ("settings", "mapping"):
        assert json.loads(run(capsys, "config", "schema", which)[1])["$schema"]


def test_config_show_says_where_values_come_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "empd.toml"
    settings.write_text("max_crashes = 7\n")
    monkeypatch.setenv("EMPD_DRAIN_S", "9")
    document = json.loads(run(capsys, "config", "show", "--config", str(settings), "--json")[1])
    assert document["max_crashes"] == {"value": 7, "source": str(settings)}
    assert document["drain_s"] == {"value": 9.0, "source": "environment"}
    assert document["http"]["source"] == "default"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "version")[1].startswith("empd ")
    assert run(capsys, "--version") == (ExitCode.OK, f"empd {__version__}\n", "")
    assert set(json.loads(run(capsys, "version", "--json")[1])) == {"version", "protocol", "python"}


def test_words_for_people() -> None:
    assert closest("simulatoin", ["echo", "simulation"]) == "; did you mean simulation?"
    assert closest("q", ["echo", "simulation"]) == ""
    assert [output.duration(s) for s in (0.44, 11.6, 600, 20_000, 400_000)] == [
        "0.4 s",
        "12 s",
        "10 min",
        "6 h",
        "4.6 d",
    ]
    assert [output.size(n) for n in (12, 65_536, 3 << 30)] == ["12 B", "64.0 KiB", "3.0 GiB"]
    assert output.time_text(0) == ""
    assert output.wall_ns(output.time_text(1_790_000_000_123_000_000)) // 10**6 == 1_790_000_000_123


def shown(monkeypatch: pytest.MonkeyPatch, width: int) -> list[str]:
    """A table with reasons, on a terminal of this width."""
    console = Console(width=width, file=io.StringIO(), highlight=False)
    monkeypatch.setattr(output, "console", lambda: console)
    rows = [("one", "a" * 20, "b" * 20, "it is busy with something else"), ("two", "a", "b", "")]
    output.print_table(("id", "first", "second", "why"), rows)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]  # type: ignore[attr-defined]


def test_what_has_no_room_in_the_last_column_stands_below(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = shown(monkeypatch, 100)
    assert wide[0].split() == ["id", "first", "second", "why"]
    assert wide[-2].endswith("it is busy with something else")
    narrow = shown(monkeypatch, 60)
    assert narrow[0].split() == ["id", "first", "second"]
    assert narrow[-1] == "one: it is busy with something else"
    assert "two" in narrow[-2]


def test_of_long_evidence_the_end_is_shown_or_where_it_happened() -> None:
    assert output.some_lines("short", "--full") == "short"
    lines = [f"line {number}" for number in range(20)]
    assert output.some_lines("\n".join(lines), "--full").splitlines() == ["… 14 lines more (--full)", *lines[14:]]
    fatal = ["ended by signal 6", "Current thread 0x1 (most recent call first):", *lines]
    assert output.some_lines("\n".join(fatal), "--full").splitlines() == [*fatal[:6], "… 16 lines more (--full)"]


def test_a_daemon_that_runs_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[float] = []

    def client(endpoint: str, *, connect_timeout_s: float, name: str) -> str:
        tries.append(connect_timeout_s)
        if len(tries) % 2:
            raise NotRunning("nobody answers")
        return "a client"

    monkeypatch.setattr(options, "Client", client)
    endpoint = f"ipc://{tmp_path}/empd.sock"
    with pytest.raises(NotRunning):
        options.connect(endpoint)
    tries.clear()
    (tmp_path / "pid").write_text(f"{os.getpid()}\n")
    assert options.connect(endpoint) == "a client"
    assert tries == [3.0, options.STARTING_S]
