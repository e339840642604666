"""The table of scenarios; its order is the order of the report."""

from __future__ import annotations

from empd.bench import throughput
from empd.bench.figures import Scenario

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "throughput",
            "jobs/s in batches of 256 and one by one, with each durability",
            throughput.measure,
            throughput.Size(),
            throughput.QUICK,
        ),
    )
}
