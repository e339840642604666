"""Programs that end without close(): what they submitted is accepted, and they end, daemon or not."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable

from tests.box import Box, wait_until

SUBMIT = """
import sys
from empd import Client
client = Client(sys.argv[1])
jobs = [client.submit("noop", number) for number in range(int(sys.argv[2]))]
"""
WAIT = 'print("submitted", flush=True)\nsys.stdin.readline()\n'
MORE = 'client.submit("noop", 1)\n'


def program(daemon: Box, text: str, count: int = 300) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", text, f"ipc://{daemon.runtime_dir}/empd.sock", str(count)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_what_a_program_submitted_last_is_accepted_after_its_end(box: Callable[..., Box]) -> None:
    daemon = box()
    with daemon.client() as client:
        client.operate("drain")
        ended = program(daemon, SUBMIT)
        _, errors = ended.communicate(timeout=60)
        assert (ended.returncode, errors) == (0, "")
        wait_until(lambda: client.status()["jobs"]["unfinished"] == 300, "all jobs to be there")


def test_a_program_ends_soon_although_the_daemon_is_gone(box: Callable[..., Box]) -> None:
    daemon = box()
    left = program(daemon, SUBMIT + WAIT + MORE)
    assert left.stdout is not None
    assert left.stdout.readline() == "submitted\n"
    daemon.kill()
    begun_s = time.monotonic()
    _, errors = left.communicate("go\n", timeout=60)
    assert left.returncode == 0
    assert re.fullmatch(r"\d+ jobs? w\w+ not acknowledged within 2 s: the daemon may not have (it|them)\n", errors)
    assert time.monotonic() - begun_s < 30


def test_a_program_that_fails_ends_soon_too(box: Callable[..., Box]) -> None:
    daemon = box()
    failed = program(daemon, SUBMIT + 'raise SystemExit("no more")\n')
    _, errors = failed.communicate(timeout=60)
    assert (failed.returncode, errors) == (1, "no more\n")
    with daemon.client() as client:
        wait_until(lambda: client.status()["jobs"]["unfinished"] == 0, "the jobs to end")
