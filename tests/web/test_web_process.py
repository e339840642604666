"""The web process as a child: start, address, control records, heartbeat, life without a broker."""

from __future__ import annotations

import asyncio
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from web_broker import BrokerDouble
from web_harness import SLOT, Web, wait_for

from empd.lifecycle import Notice
from empd.web import duty, process


def test_serves_health_and_status_as_a_child(web: Web) -> None:
    assert web.get("/healthz")["status"] == "ok"
    status = web.get("/v1/status")
    assert status["broker"]["boot"] == 1
    assert status["ready"] is True
    assert [child["name"] for child in status["children"]] == ["web"]


def test_history_does_not_hold_the_interpreter_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(life: Coroutine[Any, Any, int]) -> int:
        life.close()
        return 0

    monkeypatch.setattr(process.uvloop, "run", run)
    monkeypatch.setattr(process, "WebProcess", lambda _: SimpleNamespace(serve=AsyncMock()))
    before_s = sys.getswitchinterval()
    try:
        assert process.main(SimpleNamespace()) == 0  # type: ignore[arg-type]
        assert sys.getswitchinterval() <= 0.001
    finally:
        sys.setswitchinterval(before_s)


def test_address_file_names_the_chosen_port(web: Web) -> None:
    host, _, port = web.address.rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0


def test_stop_is_obeyed_with_exit_code_zero(web: Web) -> None:
    assert web.stop() == 0


def test_drain_is_obeyed_with_exit_code_zero(web: Web) -> None:
    web.tell(Notice.DRAIN, value=3)
    assert web.process.wait(60) == 0


def test_ends_without_its_supervisor_and_not_as_a_success(web: Web) -> None:
    web.control.close()
    assert web.process.wait(60) == 1


def test_heartbeat_goes_on(broker: BrokerDouble, start_web: Callable[..., Web]) -> None:
    web = start_web(heartbeat_s=0.05)
    first = wait_for(lambda: web.board.read(SLOT).activity, "a first heartbeat").heartbeat_mono_ns
    wait_for(lambda: web.board.read(SLOT).activity.heartbeat_mono_ns > first, "a later heartbeat")


def test_lives_without_a_broker_and_says_so(start_web: Callable[..., Web]) -> None:
    web = start_web()
    assert web.get("/healthz")["status"] == "ok"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{web.url}/readyz", timeout=30)
    assert refused.value.code == 503
    status = web.get("/v1/status")
    assert status["broker"] is None
    assert "does not answer" in status["broker_error"]


def test_meets_a_broker_that_comes_late(root: object, broker: BrokerDouble, start_web: Callable[..., Web]) -> None:
    broker.stop()
    web = start_web()
    assert web.get("/v1/status")["ready"] is False
    broker.start()
    wait_for(lambda: web.get("/v1/status")["ready"], "ready after the broker came")


def test_answers_have_the_processor_like_the_way_of_a_job(web: Web) -> None:
    with open(f"/proc/{web.process.pid}/stat", encoding="ascii") as stat:
        nice = int(stat.read().rsplit(")", 1)[1].split()[16])
    assert nice == os.nice(0)


def test_a_taken_port_is_told_in_one_line(web: Web, root: Path) -> None:
    other = root / "other"
    for name in ("run", "state"):
        (other / name).mkdir(parents=True)
    with pytest.raises(
        pytest.fail.Exception, match=f"cannot listen on {web.address}: Address already in use; set another"
    ):
        Web(other, {"http": web.address})
    assert "Traceback" not in (other / "stderr").read_text()


class Stumbling(duty.Duty):
    """Fails at its first two beginnings."""

    name = "stumbling"

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        self.runs = asyncio.Event()

    async def _run(self) -> None:
        self.begun += 1
        if self.begun < 3:
            raise PermissionError(13, "Permission denied")
        self.runs.set()
        await asyncio.Event().wait()


def test_a_duty_that_fails_begins_anew_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(duty, "AGAIN_S", 0.0)

    async def run() -> None:
        stumbling = Stumbling()
        stumbling.start()
        await asyncio.wait_for(stumbling.runs.wait(), 60)
        await stumbling.stop()
        await stumbling.stop()

    asyncio.run(run())
    assert [record.getMessage() for record in caplog.records] == ["stumbling failed, and begins anew in 0 s"] * 2
    assert "Permission denied" in caplog.text
