"""What people read on the page: its own script, on what the API answers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import empd

PAGE = Path(empd.__file__).parent / "web/page/page.js"
BROWSER = Path(__file__).with_name("page_dom.js")


def worker(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "state": "ready", "device_uuid": None, "virtual": False, "job": None, "progress": None,
        "jobs_done": 3, "jobs_failed": 1, "rss_bytes": 50 << 20, "restarts": 0, "up_s": 61.0,
        "last_exit": None, "broker": None, **more,
    }  # fmt: skip


def service(name: str, **broker: Any) -> dict[str, Any]:
    said = {"waiting": 0, "oldest_age_s": 0.0, "workers": 1, "slots": 1, "reasons": [], **broker}
    return {"name": name, "connectors": ["PythonConnector"], "broker": said}


def job(job_id: str, state: str, **more: Any) -> dict[str, Any]:
    return {
        "id": job_id, "state": state, "service": "paint", "worker": None, "attempts": 1, "submitted_at": None,
        "started_at": None, "ended_at": None, "reason": "", "error": None, **more,
    }  # fmt: skip


def seen(jobs: list[dict[str, Any]] | None = None, **status: Any) -> dict[str, str]:
    """Element → its text."""
    body = {
        "ready": True, "reasons": [], "durability": "fsync", "mapping": "here.json", "version": "1", "services": [],
        "workers": [], "children": [], "gpus": [], "broker": {"jobs": {"held": 1, "dead": 2, "payload_bytes": 2048}},
        **status,
    }  # fmt: skip
    answers = json.dumps({"/v1/status": body, "/v1/jobs": {"jobs": jobs or []}})
    done = subprocess.run(
        ["node", BROWSER, PAGE], input=answers, capture_output=True, text=True, check=True, timeout=60
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_workers_are_shown_with_what_keeps_them_from_work() -> None:
    offers = {"paint": {"reason": "missing environment variable: KEY"}, "draw": {"reason": ""}}
    workers = [
        worker("fine-0", job="000000c000001", progress=0.5),
        worker("rests-0"),
        worker("crashed-0", state="backoff", last_exit="out_of_memory", restarts=4),
        worker("rolled-0", last_exit="drained"),
        worker("lacks-0", broker={"reason": "", "services": offers}),
    ]
    rows = seen(workers=workers, broker={"jobs": {}, "drained": ["rests-0"]})["workers"].splitlines()
    cells = [row.split("|") for row in rows]
    assert [(row[0], row[1], row[-1]) for row in cells] == [
        ("fine-0", "ready", ""),
        ("rests-0", "drained", ""),
        ("crashed-0", "backoff", "last exit: out of memory"),
        ("rolled-0", "ready", ""),
        ("lacks-0", "ready", "paint: missing environment variable: KEY"),
    ]
    assert cells[0][3] == "000000c000001"
    assert cells[2][8] == "4"


def test_services_say_why_their_jobs_wait_and_the_head_why_nothing_runs() -> None:
    busy = service("paint", waiting=7, oldest_age_s=75.0, reasons=["every worker that offers it is busy"])
    found = seen(ready=False, reasons=["claims are drained"], services=[busy, service("draw")])
    assert found["services"].splitlines() == [
        "paint|7|1 min 15 s|1|1|PythonConnector|every worker that offers it is busy",
        "draw|0||1|1|PythonConnector|",
    ]
    assert (found["health"], found["reasons"], found["title"]) == ("not ready", "claims are drained", "empd: not ready")
    assert found["figures"].startswith("7 waiting 1 running 2 dead-lettered")


def test_jobs_say_what_became_of_them_or_why_they_wait() -> None:
    crashed = {"failure": "worker_crashed", "message": "the worker died"}
    rows = seen(
        [
            job("a", "waiting", reason="no connected worker offers paint", error=crashed),
            job(
                "b", "dead_lettered", error=crashed, started_at="2026-01-01T00:00:00Z", ended_at="2026-01-01T00:00:02Z"
            ),
            job("c", "completed", submitted_at="2026-01-01T12:00:00Z"),
        ]
    )["jobs"].splitlines()
    cells = [row.split("|") for row in rows]
    assert [row[-1] for row in cells] == ["no connected worker offers paint", "worker_crashed: the worker died", ""]
    assert (cells[1][1], cells[1][6]) == ("dead lettered", "2.0 s")
    assert "2026" in cells[2][5], "a day that is not today is named"
