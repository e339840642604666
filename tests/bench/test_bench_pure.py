"""The benchmarks of the pure parts (`pytest bench`): each runs, and every part has some."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = {
    "codec": ("test_wire.py", "test_encode", "test_decode"),
    "queue step": ("test_queue.py", "test_submit_256", "test_claim_256", "test_done_256"),
    "board": ("test_memory.py", "test_board_beat", "test_board_read"),
    "arena": ("test_memory.py", "test_arena_put_and_read_volatile", "test_arena_put_durable"),
    "journal": ("test_store.py", "test_commit_of_one_row", "test_replay"),
}


def test_each_runs_and_every_part_has_some() -> None:
    """Once, without a clock: so that they are right when they are wanted."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "--benchmark-disable",
        "bench",
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:]
    for part, (file, *names) in PARTS.items():
        for name in names:
            assert re.search(rf"bench/{file}::{name}(\[.*\])? PASSED", ended.stdout), part
