"""Runs scenarios: one line (plain data, complete in itself) for each figure as it comes.

python -m empd.bench.run PLAN   the same for another program: a plan in JSON in, JSON lines on standard output
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from empd.bench import histogram, machine
from empd.bench.daemon import PLACE, Where
from empd.bench.figures import Scenario
from empd.bench.running import BenchError, Running
from empd.bench.scenarios import SCENARIOS

Line = dict[str, Any]
CONNECT_TIMEOUT_S = 5.0
SERVICE = "echo"
"""Of a daemon as shipped: it gives back what it gets, at once."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure, in which size. No `scenarios`: all that can be. `runs` 0: as the size says. With an `endpoint`
    the daemon there is measured, by its `service` that does nothing."""

    scenarios: tuple[str, ...] = ()
    quick: bool = False
    runs: int = 0
    matrix: bool = False
    place: str = PLACE
    endpoint: str = ""
    service: str = SERVICE

    def chosen(self) -> list[Scenario]:
        """The scenarios, floors first. Raises BenchError for one that is not, or cannot be measured on a running
        daemon."""
        if unknown := set(self.scenarios) - set(SCENARIOS):
            raise BenchError(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
        wanted = self.scenarios or tuple(SCENARIOS)
        found = [one for name, one in SCENARIOS.items() if name in wanted or name == "floors"]
        if not self.endpoint:
            return found
        own = [one.name for one in found if not one.on_running and one.name != "floors"]
        if own and self.scenarios:
            raise BenchError(f"{', '.join(own)}: measured only on daemons of the bench's own; leave out --endpoint")
        return [one for one in found if one.on_running or one.name == "floors"]

    def size(self, scenario: Scenario) -> Any:
        """The scenario's size, as the plan changes it."""
        size = scenario.quick if self.quick else scenario.full
        changes = {"runs": self.runs} if self.runs and hasattr(size, "runs") else {}
        if self.matrix and hasattr(size, "matrix"):
            changes["matrix"] = True
        return msgspec.structs.replace(size, **changes)


def check(plan: Plan) -> None:
    """Raises BenchError for what would otherwise end a run after minutes: a scenario that is not, a package that is not
    installed, a daemon that does not answer or does not know the service."""
    chosen = plan.chosen()
    if any(scenario.name == "load" for scenario in chosen):
        histogram.of(())
    if plan.endpoint:
        with Running(plan.endpoint, plan.service).client(connect_timeout_s=CONNECT_TIMEOUT_S) as client:
            services = client.status()["services"]
        if plan.service not in services:
            raise BenchError(f"no service {plan.service!r} there; --service takes one of {', '.join(services)}")


def run(plan: Plan, begins: Callable[[Scenario], None] = lambda _: None) -> Iterator[Line]:
    """Measures; tells `begins` of each scenario before it starts. Raises BenchError when one cannot be measured."""
    check(plan)
    where = Where(plan.place, Running(plan.endpoint, plan.service) if plan.endpoint else None)
    described = {**machine.describe(plan.place), "quick": plan.quick, "endpoint": plan.endpoint}
    for scenario in plan.chosen():
        begins(scenario)
        for figure in scenario.measure(plan.size(scenario), where):
            line = figure.as_line(scenario.name, described["cores"])
            yield {**line, "at_s": round(time.time(), 3), "machine": described}


def main() -> None:
    """Standard output takes the lines, and nothing else."""
    # A bench that is told to end takes its daemons with it, as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for line in run(msgspec.json.decode(sys.argv[1], type=Plan)):
        sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
