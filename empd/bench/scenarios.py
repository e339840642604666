"""The table of scenarios; its order is the order of the report."""

from __future__ import annotations

from empd.bench import floors
from empd.bench.figures import Scenario
from empd.bench.scenario import (
    backlog,
    broker_loss,
    claim,
    connector,
    cost,
    daemon_loss,
    growth,
    idle,
    latency,
    load,
    payload,
    recovery,
    startup,
    status,
    throughput,
)

_FLOORS = Scenario(
    "floors",
    "what the machine itself can do: a ZeroMQ echo, a SQLite commit",
    floors.measure,
    floors.Size(),
    floors.QUICK,
    floors.PLOTS,
)
_ALL = (
    Scenario(
        "throughput",
        "jobs/s by durability, batch, workers and payload",
        throughput.measure,
        throughput.Size(),
        throughput.QUICK,
        throughput.PLOTS,
        on_running=True,
    ),
    Scenario(
        "latency",
        "one job at a time, beside echoes and commits of the same run",
        latency.measure,
        latency.Size(),
        latency.QUICK,
        latency.PLOTS,
        on_running=True,
    ),
    Scenario(
        "load",
        "latency at 1, 50 and 90 % of capacity, open loop",
        load.measure,
        load.Size(),
        load.QUICK,
        load.PLOTS,
        on_running=True,
    ),
    Scenario(
        "backlog",
        "memory of each waiting job, and one job beside up to a million of them",
        backlog.measure,
        backlog.Size(),
        backlog.QUICK,
        backlog.PLOTS,
    ),
    Scenario("claim", "the claim alone, on the pure queue", claim.measure, claim.Size(), claim.QUICK, claim.PLOTS),
    Scenario(
        "payload",
        "64 KiB to 256 MiB: arena, sockets, and the bare files",
        payload.measure,
        payload.Size(),
        payload.QUICK,
        payload.PLOTS,
    ),
    Scenario(
        "recovery",
        "kill -9 of a worker to the first claim of its replacement",
        recovery.measure,
        recovery.Size(),
        recovery.QUICK,
        recovery.PLOTS,
    ),
    Scenario(
        "broker_loss",
        "kill -9 of the broker with a backlog to the next claim",
        broker_loss.measure,
        broker_loss.Size(),
        broker_loss.QUICK,
        broker_loss.PLOTS,
    ),
    Scenario(
        "daemon_loss",
        "kill -9 of the supervisor, and of everything at once, to the next claim",
        daemon_loss.measure,
        daemon_loss.Size(),
        daemon_loss.QUICK,
        daemon_loss.PLOTS,
    ),
    Scenario(
        "status",
        "/v1/status at 10 requests/s under full load",
        status.measure,
        status.Size(),
        status.QUICK,
        status.PLOTS,
        on_running=True,
    ),
    Scenario("cost", "CPU and bytes of one job", cost.measure, cost.Size(), cost.QUICK, cost.PLOTS),
    Scenario(
        "connector",
        "a service behind HTTP, against a bare aiohttp loop",
        connector.measure,
        connector.Size(),
        connector.QUICK,
        connector.PLOTS,
    ),
    Scenario(
        "growth",
        "slopes over load, workers, backlog and jobs done",
        growth.measure,
        growth.Size(),
        growth.QUICK,
        growth.PLOTS,
    ),
    Scenario("idle", "CPU of the idle daemon, memory of a worker", idle.measure, idle.Size(), idle.QUICK, idle.PLOTS),
    Scenario(
        "startup", "`empd run` to READY, `empd --help`", startup.measure, startup.Size(), startup.QUICK, startup.PLOTS
    ),
)
SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in (_FLOORS, *_ALL)}
