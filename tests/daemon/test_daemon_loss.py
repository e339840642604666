"""A journal that lacks what was committed: refused by name, accepted on demand, and no id is given twice."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Callable
from typing import Any

from empd.job import parse_id
from empd.lifecycle import EXIT_OPERATOR
from tests.box import Box, wait_until


def run_jobs(daemon: Box, count: int) -> set[str]:
    """Each from a client of its own, so that sessions are opened; the jobs' ids."""
    ids = set()
    for _ in range(count):
        with daemon.client() as client:
            handle = client.submit("noop", {})
            handle.result(60)
            ids.add(handle.id)
    return ids


def state_over_http(daemon: Box, job_id: str) -> str:
    with urllib.request.urlopen(f"{daemon.http()}/v1/jobs/{job_id}", timeout=30) as answer:
        return str(json.load(answer)["state"])


def status_of(daemon: Box) -> dict[str, Any]:
    with daemon.client() as client:
        return client.status()


def test_an_older_copy_of_the_journal(box: Callable[..., Box]) -> None:
    daemon = box()
    run_jobs(daemon, 2)
    assert daemon.stop() == 0
    journal, copy = daemon.state_dir / "journal.db", daemon.home / "copy.db"
    shutil.copyfile(journal, copy)

    daemon.restart()
    before = status_of(daemon)
    lost = run_jobs(daemon, 5)
    assert daemon.stop() == 0
    for name in ("journal.db-wal", "journal.db-shm"):
        (daemon.state_dir / name).unlink(missing_ok=True)
    shutil.copyfile(copy, journal)

    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(60) == EXIT_OPERATOR
    assert "were committed and are missing" in daemon.log()
    assert "--accept-loss" in daemon.log()

    daemon.settings["accept_loss"] = "true"
    daemon.start()
    del daemon.settings["accept_loss"]
    after = status_of(daemon)
    assert after["journal"]["loss"]
    assert after["instance"] != before["instance"]
    assert after["boot"] > before["boot"] + 1000
    again = run_jobs(daemon, 5)
    assert not lost & again
    assert min(map(parse_id, again)) >> 32 > max(map(parse_id, lost)) >> 32
    # History follows the journal that there is now.
    newest = max(again)
    wait_until(lambda: status_of(daemon)["consumers"].get("history", 0) >= after["journal"]["last_seq"], "history")
    assert state_over_http(daemon, newest) == "completed"

    # It is a fact: the next start needs no flag, and goes on from there.
    assert daemon.stop() == 0
    daemon.restart()
    assert status_of(daemon)["boot"] == after["boot"] + 1
    assert not (lost | again) & run_jobs(daemon, 2)
