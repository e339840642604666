"""/readyz and /v1/status say the same, what a job would meet: each reason by itself, so that taking it out shows."""

from __future__ import annotations

from collections.abc import Callable

from web_broker import BrokerDouble
from web_harness import Web, wait_for


def reasons_of(web: Web) -> list[str]:
    """Why no job would be taken, as both say it."""
    answer = web.ask("GET", "/readyz")
    said = answer.json()
    status = web.get("/v1/status")
    if status["reasons"] != said["reasons"]:  # it has changed between the two
        return reasons_of(web)
    assert answer.status == (503 if said["reasons"] else 200)
    assert said["ready"] is status["ready"] is (not said["reasons"])
    found: list[str] = said["reasons"]
    return found


def test_both_say_what_the_broker_says(web: Web, broker: BrokerDouble) -> None:
    assert reasons_of(web) == []
    broker.problems = ["no worker takes jobs", "the queue is full"]
    wait_for(lambda: reasons_of(web) == ["no worker takes jobs", "the queue is full"], "both reasons")
    broker.problems = []
    wait_for(lambda: reasons_of(web) == [], "ready again")


def test_both_say_that_the_broker_is_gone(web: Web, broker: BrokerDouble) -> None:
    assert reasons_of(web) == []
    broker.stop()
    wait_for(lambda: any("does not answer" in reason for reason in reasons_of(web)), "not ready without a broker")
    broker.start()
    wait_for(lambda: reasons_of(web) == [], "ready again")


def test_both_say_that_the_disk_is_full(broker: BrokerDouble, start_web: Callable[..., Web]) -> None:
    [reason] = reasons_of(start_web(disk_free_min_bytes=1 << 60))
    assert "disk_free_min_bytes" in reason
