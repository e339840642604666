"""What a server writes is kept to its last word, and a disk that is stuck holds up nobody but who writes to it."""

from __future__ import annotations

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
