"""What a server writes is kept to its last word, and a disk that is stuck holds up nobody but who writes to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from empd.server.output import Output


def test_all_that_a_server_wrote_is_there_when_it_has_ended(tmp_path: Path) -> None:
    for number in range(10):
        path = tmp_path / f"{number}.log"
        output = Output(path, 1 << 20)
        with subprocess.Popen([sys.executable, "-Sc", "print('x' * 40_000)"], stdout=output.write_fd):
            output.begin()
            output.note("it runs")
        output.note("it has ended")
        output.finish()
        text = path.read_text()
        assert text.count("x") == 40_000
        assert ("it runs" in text, "it has ended" in text) == (True, True)


def test_a_note_is_kept_where_there_is_no_server(tmp_path: Path) -> None:
    output = Output(tmp_path / "a.log", 1 << 20)
    output.begin()
    output.note("cannot be started")
    output.finish()
    assert (tmp_path / "a.log").read_text().endswith(": cannot be started\n")


def test_a_stuck_disk_does_not_hold_up_who_makes_a_note(tmp_path: Path) -> None:
    stuck = tmp_path / "a.log"
    os.mkfifo(stuck)  # to open it for writing waits for a reader
    output = Output(stuck, 1 << 20)
    output.begin()
    noting = threading.Thread(target=lambda: [output.note("again") for _ in range(1000)], daemon=True)
    noting.start()
    noting.join(60)
    assert not noting.is_alive()
    with stuck.open("rb") as reader:  # the disk works again
        assert reader.readline().endswith(b": again\n")
    output.finish()


def test_lines_stay_whole_where_notes_come_and_files_change(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    output = Output(path, 2000)
    output.begin()
    for number in range(25):
        line = b'{"number": %d, "text": "%s"}\n' % (number, b"x" * 50)
        os.write(output.write_fd, line[:30])
        os.write(output.write_fd, line[30:])
    os.write(output.write_fd, b"the last words, without an end")
    output.note("it has ended")
    output.finish()
    older, newer = path.with_name("a.log.1").read_text(), path.read_text()
    assert max(len(older), len(newer)) <= 1000
    assert older.endswith("\n")
    lines = (older + newer).splitlines()
    numbers = [json.loads(line)["number"] for line in lines if line.startswith("{")]
    assert numbers == list(range(numbers[0], 25))
    # The note may have been quicker than what is in the pipe.
    assert len([line for line in lines if line.endswith(": it has ended")]) == 1
    assert [line for line in lines if not line.startswith("---")][-1] == "the last words, without an end"


def test_a_line_that_is_longer_than_a_file_is_cut_and_the_bound_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    output = Output(path, 2000)
    for _ in range(50):
        output.write(b"x" * 100)
    assert len(path.read_bytes()) <= 1000
    assert len(path.with_name("a.log.1").read_bytes()) <= 1000
    output.begin()
    output.finish()


def test_a_note_waits_for_the_end_of_the_servers_line(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    output = Output(path, 1 << 20)
    output.write(b'{"event": ')
    output.note("it hangs")
    output.begin()
    os.write(output.write_fd, b'"begun"}\n{"event"')
    os.write(output.write_fd, b': "ended"}\n')
    output.finish()
    lines = path.read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines if line.startswith("{")] == ["begun", "ended"]
    assert len([line for line in lines if line.endswith(": it hangs")]) == 1
