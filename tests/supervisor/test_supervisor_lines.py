"""What is logged and printed stays in whole lines, of a length that no pipe and no journal takes apart."""

from __future__ import annotations

import io
import json
import logging
import os
import select
import sys
from typing import Any

import pytest

from empd.lines import GOES_ON, LINE_BYTES_MAX, Lines, keep_whole
from empd.supervisor.log import JsonLines
from empd.worker.log import Log

SECRET = "the-secret-of-this-service"


def written(capfd: pytest.CaptureFixture[str], log: Log, **fields: Any) -> dict[str, Any]:
    log("told", job="J1", **fields)
    (line,) = capfd.readouterr().err.splitlines()
    assert len(line.encode()) < LINE_BYTES_MAX
    return json.loads(line)


@pytest.mark.parametrize(
    "value", ["x" * 100_000, "é\n" * 50_000, "\x00" * 50_000, [{"key": "y" * 50_000}], "\udcff" * 9000]
)
def test_a_long_value_loses_its_middle_and_the_record_nothing_else(capfd: pytest.CaptureFixture[str], value: Any):
    record = written(capfd, Log(machine="m"), long=value, bytes=7, none=None, yes=True)
    assert "characters left out" in record.pop("long")
    del record["timestamp"]
    assert record == {
        "level": "info",
        "event": "told",
        "machine": "m",
        "job": "J1",
        "bytes": 7,
        "none": None,
        "yes": True,
    }


def test_the_end_of_what_is_long_is_told(capfd: pytest.CaptureFixture[str]):
    assert written(capfd, Log(), trace="x" * 100_000 + "the end")["trace"].endswith("the end")


def test_a_record_of_very_many_fields_keeps_the_first(capfd: pytest.CaptureFixture[str]):
    record = written(capfd, Log(), **{f"field_{number}": "x" * 100 for number in range(3000)})
    assert (record["event"], record["job"]) == ("told", "J1")
    assert "field_0" in record


def test_where_a_value_is_cut_no_secret_is_cut_in_two(capfd: pytest.CaptureFixture[str]):
    log = Log()
    log.redact.learn([SECRET])
    told = written(capfd, log, long=SECRET * 5000)["long"]
    assert not any(SECRET[start : start + 4] in told for start in range(len(SECRET) - 3))


def test_a_secret_that_looks_like_a_number_leaves_the_record_valid(capfd: pytest.CaptureFixture[str]):
    log = Log()
    log.redact.learn(["5678"])
    record = written(capfd, log, port=15678, key="5678")
    assert (record["event"], record["port"], record["key"]) == ("told", "1***", "***")


def test_the_supervisors_records_have_the_same_bound():
    try:
        raise ValueError("y" * 20_000 + "the end")
    except ValueError:
        caught = sys.exc_info()
    line = logging.LogRecord("empd.broker", logging.ERROR, __file__, 1, "x" * 20_000, None, caught)
    text = JsonLines(4096).format(line)
    assert len(text.encode()) < 4096
    record = json.loads(text)
    assert (record["level"], record["logger"]) == ("error", "empd.broker")
    assert record["exception"].endswith("the end")


class Writes(io.StringIO):
    """A stream that remembers what it was given at once."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def write(self, text: str) -> int:
        self.parts.append(text)
        return len(text)


@pytest.mark.parametrize("letter", ["x", "é", "\U0001f600", "\udcff"])
def test_a_long_line_goes_on_in_the_next_and_loses_nothing(letter: str):
    stream = Writes()
    lines = Lines(stream, 100)
    for text in ("short\n", letter * 30, letter * 1000, "the end\nand", " more", "\n\n"):
        assert lines.write(text) == len(text)
    whole = "".join(stream.parts)
    assert max(len(line.encode()) for line in whole.splitlines()) < 100
    shown = letter.encode(errors="backslashreplace").decode()
    assert whole.replace(f"{GOES_ON}\n", "") == f"short\n{shown * 1030}the end\nand more\n\n"
    assert all("\n" not in part[:-1] for part in stream.parts), "each line goes out by itself"


def test_what_is_flushed_in_the_middle_of_a_line_becomes_one():
    stream = Writes()
    lines = Lines(stream, 100)
    for text in ("\r 10 %", "\r 20 %", ""):
        lines.write(text)
        lines.flush()
    assert "".join(stream.parts) == "\r 10 %\n\r 20 %\n"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_into_a_pipe_nothing_goes_that_it_could_part(monkeypatch: pytest.MonkeyPatch, name: str):
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    with open(write_fd, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", None)
        monkeypatch.setattr(sys, name, stream)
        keep_whole()
        print("x" * select.PIPE_BUF, file=getattr(sys, name))
        print("whole", file=getattr(sys, name))
        data = os.read(read_fd, 1 << 16)
        os.close(read_fd)
    first, second, third = data.decode().splitlines()
    assert len(first.encode()) + 1 == select.PIPE_BUF
    assert (first[-1], second, third) == (GOES_ON, "x" * (select.PIPE_BUF - len(first) + 1), "whole")
