"""python bench/readme_figures.py FILE...: the tables and plots of README.md and bench/README.md, from a run's lines.

`make figures` calls it with what `make bench` and `make bench-peers` have written. A figure that the files lack keeps
its table from being written: half of a table from one machine and half from another would say nothing.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from empd.bench import report

ROOT = Path(__file__).parents[1]
PLOTS = {
    "peers.throughput-jobs-s.svg": "peers-throughput.svg",
    "peers.a-killed-worker-s-job-starts-again-after-ms.svg": "peers-recovery.svg",
}
"""Of the report's plots those that the pages show, and what they are called there."""

Line = Mapping[str, Any]


class Row(NamedTuple):
    """One line of the README's table: what it says, and the figures behind it, in that order."""

    says: str
    names: tuple[str, ...]


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
        "kill -9 to a claim: worker; broker, 10⁵ waiting; 10⁶; whole daemon",
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

PEER_COLUMNS = {
    "throughput": "jobs/s",
    "latency": "one job, p50",
    "payload": "16 MiB in and out",
    "memory": "a waiting job",
    "recovery": "a killed worker's job starts again after",
}


def value(line: Line) -> str:
    """A figure for people, with its unit; (missed) where its bound is not met."""
    number, unit = line["value"], line["unit"]
    if unit == "ms" and number >= 1000:
        number, unit = number / 1000, "s"
    if line["details"].get("again") is False:
        return f"not within {number:.0f} {unit}"
    rounded = float(f"{number:.3g}")
    said = f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"
    said += {"ratio": " ×", "jobs/s": "", "bytes": " B"}.get(unit, f" {unit}")
    return said if line["verdict"] in (None, "met") else f"{said} (missed)"


def bound(line: Line) -> str:
    """The figure's bound, in the unit in which its value is shown; a dash where it has none."""
    if not line["bound"]:
        return "–"
    sign, number = line["bound"][0], line["target"]
    if line["unit"] != "ms":
        return str(line["bound"])
    return f"{sign} {number / 1000:g} s" if number >= 1000 else f"{sign} {number:g} ms"


def figures_table(lines: Mapping[str, Line]) -> list[str]:
    """The table of FIGURES. Raises KeyError for a figure that is not there."""
    rows = [[lines[name] for name in row.names] for row in FIGURES]
    cores = rows[0][0]["machine"]["cores"]
    head = f"| Figure (medians, {cores} cores; the targets are for 4) | Measured | Target |"
    body = [
        f"| {row.says} | {'; '.join(map(value, found))} | {'; '.join(map(bound, found))} |"
        for row, found in zip(FIGURES, rows, strict=True)
    ]
    return [head, "|---|---|---|", *body]


def peers_table(lines: Iterable[Line]) -> list[str]:
    """Every peer in each of its settings, in the order in which they were measured. Raises KeyError without any."""
    found: dict[tuple[str, str], dict[str, Line]] = {}
    for line in lines:
        axes = line["axes"]
        if "peer" in axes:
            found.setdefault((axes["peer"], axes["setting"]), {})[axes["of"]] = line
    if not found:
        raise KeyError("peers")
    head = f"| peer | setting | {' | '.join(PEER_COLUMNS.values())} |"
    body = [
        f"| {peer} | {setting} | "
        + " | ".join(value(measured[of]) if of in measured else "–" for of in PEER_COLUMNS)
        + " |"
        for (peer, setting), measured in found.items()
    ]
    return [head, "|---" * (2 + len(PEER_COLUMNS)) + "|", *body]


def fill(text: str, mark: str, lines: Iterable[str]) -> str:
    """The page with these lines between the marks `<!-- mark: begin -->` and `end`. Raises ValueError without them."""
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no place for {mark}")
    return before + begin + "".join(f"{line}\n" for line in lines) + end + after


def main(files: list[str]) -> int:
    """Writes what the files suffice for; says what is missing. Exit code 1 when something is."""
    lines = [msgspec.json.decode(text, type=dict) for file in files for text in Path(file).read_text().splitlines()]
    by_name = {line["name"]: line for line in lines}
    missing = []
    for page, mark, table in (
        (ROOT / "README.md", "figures", lambda: figures_table(by_name)),
        (ROOT / "bench" / "README.md", "peers", lambda: peers_table(lines)),
    ):
        try:
            page.write_text(fill(page.read_text("utf-8"), mark, table()), "utf-8")
        except KeyError as error:
            missing.append(f"{page.name}: no figure {error}; its table of {mark} stays as it is")
    with tempfile.TemporaryDirectory() as scratch:
        drawn = report.write(lines, Path(scratch)).parent
        for name, here in PLOTS.items():
            if (drawn / name).exists():
                shutil.copyfile(drawn / name, ROOT / "bench" / "figures" / here)
            else:
                missing.append(f"no plot {name}")
    for problem in missing:
        print(problem, file=sys.stderr)
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
