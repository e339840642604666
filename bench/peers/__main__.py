"""python -m peers --json FILE: empd and its peers in one run, each in a process of its own and bounded in time."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import msgspec
import psutil

from empd.bench.daemon import PLACE
from empd.bench.figures import Target, median_of
from peers.measure import QUICK, Size
from peers.table import PEERS

LIMIT_S = 150.0
QUICK_LIMIT_S = 90.0
RATIOS = {
    "nats": ("nats-jetstream", Target(6, at_least=True, cores=4)),
    "celery": ("celery", Target(150, at_least=True, cores=4)),
}
"""Durable throughput of empd against theirs."""

Line = dict[str, Any]


@click.command()
@click.option(
    "--json", "file", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Write lines here."
)
@click.option("--quick", is_flag=True, help="Small sizes.")
@click.option("-p", "--peer", "names", multiple=True, type=click.Choice(list(PEERS)), help="Only this one.")
def peers(file: Path, quick: bool, names: tuple[str, ...]) -> None:
    """Measure empd and its peers. What fails is named, and the exit code is then 1."""
    lines: list[Line] = []
    failed: list[str] = []
    with file.open("w") as out:
        for name in names or PEERS:
            try:
                settings = PEERS[name]().settings
            except ImportError as error:
                click.echo(f"{name}: {error}", err=True)
                failed.append(name)
                continue
            for setting in settings:
                begun_s = time.monotonic()
                found, problem = measured(name, setting, quick)
                said = problem or f"{len(found)} figures"
                click.echo(f"{name}, {setting}: {said} in {time.monotonic() - begun_s:.0f} s", err=True)
                lines += found
                out.writelines(msgspec.json.encode(line).decode() + "\n" for line in found)
                out.flush()
                failed += [name] if problem else []
        out.writelines(msgspec.json.encode(line).decode() + "\n" for line in ratios(lines))
    sys.exit(bool(failed))


def measured(name: str, setting: str, quick: bool) -> tuple[list[Line], str]:
    """(lines, what went wrong)."""
    size = msgspec.json.encode(QUICK if quick else Size()).decode()
    # Removed here, as one that is killed cannot.
    with tempfile.TemporaryDirectory(prefix="empd-peer-", dir=PLACE, ignore_cleanup_errors=True) as place:
        process = subprocess.Popen(
            [sys.executable, "-m", "peers.measure", name, setting, size, place],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            said, errors = process.communicate(timeout=QUICK_LIMIT_S if quick else LIMIT_S)
        except subprocess.TimeoutExpired:
            kill_family(process.pid)
            said, errors = process.communicate()
            errors += b"\nit took too long"
    lines = [msgspec.json.decode(text, type=dict) for text in said.splitlines()]
    return lines, errors.decode(errors="replace").strip().rpartition("\n")[2] if process.returncode else ""


def kill_family(pid: int) -> None:
    """Kills a process and all that it has started, whatever that has started."""
    parent = psutil.Process(pid)
    for one in (parent, *parent.children(recursive=True)):  # the list is made before anyone is killed
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def ratios(lines: list[Line]) -> list[Line]:
    """empd's durable throughput against that of some: run by run."""
    by_name = {line["name"]: line for line in lines}
    own = by_name.get("peers.empd.durable.throughput")
    found = []
    for short, (name, target) in RATIOS.items():
        other = by_name.get(f"peers.{name}.durable.throughput")
        if own and other:
            samples = [mine / other["value"] for mine in own["samples"]]
            settings = {"of": "durable throughput, each run of empd's against the median of theirs"}
            figure = median_of(f"peers.empd_to_{short}", "ratio", samples, target=target, settings=settings)
            found.append({**figure.as_line("peers", own["machine"]["cores"]), "machine": own["machine"]})
    return found


if __name__ == "__main__":
    peers()
