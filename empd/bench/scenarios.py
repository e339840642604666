"""The table of scenarios; its order is the order of the report."""

from __future__ import annotations

from empd.bench import backlog, broker_loss, claim, idle, latency, recovery, startup, throughput
from empd.bench.figures import Scenario

_ALL = (
    Scenario(
        "throughput",
        "jobs/s in batches of 256 and one by one, with each durability",
        throughput.measure,
        throughput.Size(),
        throughput.QUICK,
    ),
    Scenario(
        "latency",
        "one durable job at a time, beside 2 × echo + 2 × commit",
        latency.measure,
        latency.Size(),
        latency.QUICK,
    ),
    Scenario(
        "backlog",
        "memory of each waiting job, and a claim beside a million of them",
        backlog.measure,
        backlog.Size(),
        backlog.QUICK,
    ),
    Scenario("claim", "the claim alone, on the pure queue", claim.measure, claim.Size(), claim.QUICK),
    Scenario(
        "recovery",
        "kill -9 of a worker to the first claim of its replacement",
        recovery.measure,
        recovery.Size(),
        recovery.QUICK,
    ),
    Scenario(
        "broker_loss",
        "kill -9 of the broker with a backlog to the next assignment",
        broker_loss.measure,
        broker_loss.Size(),
        broker_loss.QUICK,
    ),
    Scenario("idle", "CPU of the idle daemon, memory of a worker", idle.measure, idle.Size(), idle.QUICK),
    Scenario("startup", "`empd run` to READY, `empd --help`", startup.measure, startup.Size(), startup.QUICK),
)
SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
