"""python bench/readme_figures.py FILE...: the tables and plots of README.md and bench/README.md, from a run's lines.

`make figures` calls it with what `make bench` and `make bench-peers` have written. A figure that the files lack keeps
its table from being written: half of a table from one machine and half from another would say nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from empd.bench import report, tables
from empd.bench.tables import Table

ROOT = Path(__file__).parents[1]
PLOTS = {
    "throughput": ("throughput.throughput-by-durability-and-batch.svg", "jobs/s by durability and batch"),
    "cost": ("cost.cpu-of-one-durable-job.svg", "what a job costs each process"),
    "peers-throughput": ("peers.throughput-jobs-s.svg", "jobs/s beside other systems"),
    "peers-recovery": (
        "peers.a-killed-worker-s-job-starts-again-after-ms.svg",
        "how long after its worker was killed a job starts again",
    ),
}
"""What the pages call those of the report's plots that they show: the report's name, what is seen."""

Line = Mapping[str, Any]


class Row(NamedTuple):
    """One line of the README's table: what it says, and the figures behind it, in that order."""

    says: str
    names: tuple[str, ...]


class Place(NamedTuple):
    """What stands between the marks of a page: a table, and plots."""

    page: str
    mark: str
    table: Callable[[Sequence[Line]], Table]
    plots: tuple[str, ...]


FIGURES = (
    Row(
        "durable jobs/s, two workers, all results told: by 256; one by one",
        ("throughput.fsync.batch256", "throughput.fsync.batch1"),
    ),
    Row(
        "durable jobs/s as a multiple of NATS JetStream's; of Celery's", ("peers.empd_to_nats", "peers.empd_to_celery")
    ),
    Row("one durable job at a time, p50 against 2 echoes + 2 commits", ("latency.fsync.p50_to_floor",)),
    Row("p99 at half of capacity; of `/v1/status` under full load", ("load.p99.at50", "status.p99")),
    Row(
        "memory of a waiting job beyond its payload; a claim beside 10⁶ against 10",
        ("memory.per_waiting_job.1000000", "claim.daemon.1000000"),
    ),
    Row(
        "µs of CPU for a job by 256: client; broker; of it the journal; worker; history",
        tuple(f"cost.batch256.{process}" for process in ("client", "broker", "journal", "worker", "web")),
    ),
    Row(
        "kill -9 to a claim: worker; broker, 10⁵ jobs; 10⁶; daemon",
        ("recovery.worker", "recovery.broker.100000", "recovery.broker.1000000", "recovery.box"),
    ),
    Row(
        "64 MiB against a bare file; against sockets; HTTP against aiohttp",
        (
            "payload.volatile_to_bare.67108864",
            "payload.volatile_to_inline.67108864",
            "connector.after_10ms.to_bare",
        ),
    ),
    Row(
        "the idle daemon; a worker's memory; `empd run` to READY",
        ("idle.cpu", "memory.worker", "startup.ready"),
    ),
)


def figures_table(lines: Sequence[Line]) -> Table:
    """The table of FIGURES. Raises KeyError for a figure that is not there."""
    by_name = {line["name"]: line for line in lines}
    rows = [[by_name[name] for name in row.names] for row in FIGURES]
    cores = rows[0][0]["machine"]["cores"]
    head = [f"Figure (medians, {cores} cores; the targets are for 4; {tables.MISSED}: missed)", "Measured", "Target"]
    return Table(head, [[row.says, measured(found), targets(found)] for row, found in zip(FIGURES, rows, strict=True)])


def measured(lines: Sequence[Line]) -> str:
    """The values of a row. Its words have the unit where it is µs."""
    return "; ".join(tables.value(line).removesuffix(" µs") for line in lines)


def targets(lines: Sequence[Line]) -> str:
    """The bounds of a row; one dash where none has any."""
    found = list(map(tables.bound, lines))
    return "; ".join(found) if set(found) != {tables.NONE} else tables.NONE


def peers_table(lines: Iterable[Line]) -> Table:
    """Every peer in each of its settings, in the order in which they were measured. Raises KeyError without any."""
    found = tables.peers(lines)
    if found is None:
        raise KeyError("peers")
    return found


def markdown(table: Table) -> list[str]:
    """The lines of a table."""
    head, *body = (f"| {' | '.join(row)} |" for row in (table.head, *table.rows))
    return [head, "|---" * len(table.head) + "|", *body]


def images(place: Place) -> list[str]:
    """The plots that are there, in one line; nothing where none is."""
    page = ROOT / place.page
    files = {name: ROOT / "bench" / "figures" / f"{name}.svg" for name in place.plots}
    links = [
        f"![{PLOTS[name][1]}]({os.path.relpath(file, page.parent)})" for name, file in files.items() if file.exists()
    ]
    return ["", " ".join(links)] if links else []


def fill(text: str, mark: str, lines: Iterable[str]) -> str:
    """The page with these lines between the marks `<!-- mark: begin -->` and `end`. Raises ValueError without them."""
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no place for {mark}")
    return before + begin + "".join(f"{line}\n" for line in lines) + end + after


PLACES = (
    Place("README.md", "figures", figures_table, ("throughput", "peers-throughput")),
    Place("bench/README.md", "peers", peers_table, ("peers-throughput", "peers-recovery")),
    Place("bench/README.md", "costs", tables.costs, ("cost",)),
)


def draw(lines: Sequence[Line]) -> list[str]:
    """Writes the plots; names those that could not be."""
    if not lines:
        return [f"no plot {file}" for file, _ in PLOTS.values()]
    missing = []
    with tempfile.TemporaryDirectory() as scratch:
        drawn = report.write(lines, Path(scratch)).parent
        for name, (file, _) in PLOTS.items():
            if (drawn / file).exists():
                # A page may be dark; ink is not.
                svg = (drawn / file).read_text("utf-8").replace("<svg ", '<svg style="background: white" ', 1)
                (ROOT / "bench" / "figures" / f"{name}.svg").write_text(svg, "utf-8")
            else:
                missing.append(f"no plot {file}")
    return missing


def main(files: list[str]) -> int:
    """Writes what the files suffice for; says what is missing. Exit code 1 when something is."""
    absent = [file for file in files if not Path(file).exists()]
    if absent:
        print(f"{', '.join(absent)}: not there; `make bench bench-peers` writes them", file=sys.stderr)
        return 1
    lines = [msgspec.json.decode(text, type=dict) for file in files for text in Path(file).read_text().splitlines()]
    missing = draw(lines)
    for place in PLACES:
        page = ROOT / place.page
        try:
            shown = [*markdown(place.table(lines)), *images(place)]
            page.write_text(fill(page.read_text("utf-8"), place.mark, shown), "utf-8")
        except KeyError as error:
            missing.append(f"{place.page}: no figure {error}; its table of {place.mark} stays as it is")
    for problem in missing:
        print(problem, file=sys.stderr)
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
