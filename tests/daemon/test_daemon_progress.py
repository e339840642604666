"""Progress and slots of the whole daemon: what does not move is ended, what moves is left alone, and no more runs at
once than was said."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from empd.errors import JobDead
from tests.box import Box, mapping_of, service, wait_until

GRACES = {"cancel_grace_s": 0.3, "term_grace_s": 0.3, "heartbeat_s": 0.1, "backoff_s": 0.05}


def test_a_run_that_does_not_move_is_ended_and_one_that_does_is_not(box: Callable[..., Box]) -> None:
    moving = service(api_config={"duration_s": 5, "steps": 50}, progress_timeout_s=2.0)
    still = service(api_config={"fault": "hang"}, progress_timeout_s=2.0)
    daemon = box(mapping_of(moving=moving, still=still), max_crashes=1, **GRACES)
    with daemon.client() as client:
        moves = client.submit("moving", {}, timeout_s=0)
        hangs = client.submit("still", {}, timeout_s=0)
        first = daemon.pid("still-0")
        with pytest.raises(JobDead) as dead:
            hangs.result(60)
        assert dead.value.failure == "worker_hung"
        assert "_sleep_through_cancel" in dead.value.evidence or "Thread" in dead.value.evidence
        assert wait_until(lambda: daemon.pid("still-0") != first, "the successor")
        assert moves.result(60) == {"steps": 50}
        assert moves.status().attempts == 1


def test_a_second_sigterm_ends_the_daemon_now_and_loses_nothing(box: Callable[..., Box]) -> None:
    daemon = box(mapping_of(long=service(api_config={"duration_s": 60})), drain_s=60, **GRACES)
    assert daemon.process is not None
    with daemon.client() as client:
        running, waiting = client.submit("long", {}), client.submit("long", {"duration_s": 0})
        assert waiting.accepted(10)
        wait_until(lambda: running.status().state == "assigned", "the job to run")
        daemon.process.send_signal(signal.SIGTERM)
        wait_until(lambda: '"draining"' in (daemon.runtime_dir / "supervisor.json").read_text(), "the drain")
        assert daemon.process.poll() is None
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.wait(60)
        daemon.restart()
        wait_until(lambda: running.status().state == "assigned", "the job to run again")
        client.cancel([running])
        assert waiting.result(60) is not None


def test_no_more_runs_at_once_than_the_mapping_says(box: Callable[..., Box], tmp_path: Path) -> None:
    def overlapping(**entry: Any) -> Any:
        return service("PythonConnector", api_config={"callable": "overlaps:overlapping"}, isolation="process", **entry)

    worker = {"instances": 2, "max_concurrent_jobs": 3}
    daemon = box(mapping_of(s=overlapping(worker=worker), one=overlapping(worker={"instances": 1})))
    folders = {name: tmp_path / name for name in ("s", "one")}
    for folder in folders.values():
        folder.mkdir()
    with daemon.client() as client:
        many = client.submit_many("s", [{"folder": str(folders["s"]), "slots": 3}] * 60)
        single = client.submit_many("one", [{"folder": str(folders["one"]), "slots": 1}] * 10)
        seen = list(many.results(60))
        assert max(each["here"] for each in seen) == 3, "all slots are used, and no more"
        assert max(each["all"] for each in seen) <= 6
        assert {each["all"] for each in single.results(60)} == {1}
