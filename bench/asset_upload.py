"""A large file to Azure Blob Storage: beside azure-storage-blob alone, and the memory and CPU that it takes.

    python bench/asset_upload.py [--mib 2048] [--rounds 3] [--json FILE]

`empd` is what `context.assets.save(path)` does. `bare` is `BlobClient.upload_blob` of the open file in the library's
own blocks, as many at once as empd has; `bare_single` the same as shipped, one at a time. Each upload runs in a process
of its own, to an Azurite of its own on this machine (`make unit` installs it), with nothing of the one before left to
be written; the order turns around from round to round, and ratios are those of each round. Client and server share the
cores: where those are busy, what both use together decides.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO, Any

import click
import msgspec
import uvloop

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from empd.assets.azure import BLOCK_BYTES, BLOCKS_AT_ONCE  # noqa: E402
from empd.bench import machine, processes  # noqa: E402
from empd.bench.figures import Figure, Target, median_of, shown  # noqa: E402
from empd.bench.running import BenchError  # noqa: E402
from empd.cli import output  # noqa: E402

SCENARIO = "upload"
CONTAINER = "bench"
PLACE = "/tmp"
LIMIT_S = 900.0
MIB_MIN = 65
"""Up to 64 MiB the library sends one request, which is another thing."""

TO_BARE = Target(0.9, at_least=True)
GROWN_MIB = Target(64)


class Order(msgspec.Struct, frozen=True):
    """One upload, for a process of its own."""

    way: str
    connection: str
    path: str


class Taken(msgspec.Struct, frozen=True):
    """What one upload took. `grown_mib`: from the client's memory before it to its peak."""

    seconds: float
    client_cpu_s: float
    grown_mib: float
    server_cpu_s: float = 0.0


# --- in a process of its own -----------------------------------------------------------------------------------------


async def bare(order: Order, at_once: int) -> Taken:
    """azure-storage-blob and nothing else."""
    from azure.storage.blob.aio import BlobServiceClient

    async with BlobServiceClient.from_connection_string(order.connection) as service:
        blob = service.get_blob_client(CONTAINER, "bare")

        async def upload() -> None:
            with open(order.path, "rb") as file:
                await blob.upload_blob(file, overwrite=True, max_concurrency=at_once)

        return await measured(upload)


async def empd(order: Order) -> Taken:
    """What `context.assets.save(path)` does."""
    from empd.asset import AssetConfig
    from empd.assets.naming import Mark
    from empd.assets.saver import Saver

    config = AssetConfig(provider="azure", container=CONTAINER, connection_string=order.connection)
    saver = Saver(config, Path(), 0)
    await saver.open()
    try:
        assets = saver.bind(Mark("b" * 32, 1, time.time_ns()), None)
        return await measured(lambda: assets.save(Path(order.path)))
    finally:
        await saver.close()


WAYS: dict[str, Callable[[Order], Awaitable[Taken]]] = {
    "bare": lambda order: bare(order, BLOCKS_AT_ONCE),
    "empd": empd,
    "bare_single": lambda order: bare(order, 1),
}


async def measured(work: Callable[[], Awaitable[object]]) -> Taken:
    """Time, CPU and memory of this process while it works."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before_kib, cpu_s, began_s = _peak_kib(), time.process_time(), time.perf_counter()
    await work()
    seconds = time.perf_counter() - began_s
    return Taken(seconds, time.process_time() - cpu_s, (_peak_kib() - before_kib) / 1024)


def _peak_kib() -> int:
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


# --- around it -------------------------------------------------------------------------------------------------------


def one(way: str, path: Path) -> Taken:
    """One upload to a store that holds nothing yet. Raises BenchError when the file does not arrive whole."""
    from tests.azurite import Azurite

    os.sync()
    with Azurite(in_memory=False) as azurite:
        azurite.store(CONTAINER)
        order = msgspec.json.encode(Order(way, azurite.connection_string, str(path))).decode()
        before_s = processes.cpu_s(azurite.pid)
        command = [sys.executable, __file__, "--order", order]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=LIMIT_S).stdout
        server_cpu_s = processes.cpu_s(azurite.pid) - before_s
        with azurite.client() as client:
            sizes = [blob.size for blob in client.get_container_client(CONTAINER).list_blobs()]
    if sizes != [path.stat().st_size]:
        raise BenchError(f"{way}: the store has blobs of {sizes} bytes, the file has {path.stat().st_size}")
    return msgspec.structs.replace(msgspec.json.decode(said, type=Taken), server_cpu_s=server_cpu_s)


def rounds_of(mib: int, rounds: int) -> Iterator[dict[str, Taken]]:
    """What each way took, round by round. Raises BenchError where the disk has too little room."""
    needed_mib, free_mib = 3 * mib, shutil.disk_usage(PLACE).free >> 20
    if free_mib < needed_mib:
        raise BenchError(f"{PLACE} has {free_mib} MiB free; file and store need {needed_mib}")
    with tempfile.TemporaryDirectory(prefix="empd-bench-", dir=PLACE) as folder:
        path = Path(folder, "file")
        with path.open("wb") as file:
            for _ in range(mib):
                file.write(os.urandom(1 << 20))
        for number in range(rounds):
            order = list(WAYS) if number % 2 == 0 else list(reversed(WAYS))
            yield {way: one(way, path) for way in order}


def figures(mib: int, runs: list[dict[str, Taken]]) -> Iterator[Figure]:
    """Throughput of each way with what it took, empd's memory, and empd against the others."""
    settings = {"mib": mib, "block_mib": BLOCK_BYTES >> 20, "at_once": BLOCKS_AT_ONCE}

    def speed(taken: Taken) -> float:
        return mib / taken.seconds

    def cpu_s(taken: Taken) -> float:
        return taken.client_cpu_s + taken.server_cpu_s

    for way in WAYS:
        took = [run[way] for run in runs]
        details = {
            "client_cpu_s_per_gib": statistics.median(one.client_cpu_s for one in took) * 1024 / mib,
            "server_cpu_s_per_gib": statistics.median(one.server_cpu_s for one in took) * 1024 / mib,
            "grown_mib": max(one.grown_mib for one in took),
        }
        yield median_of(f"upload.{way}", "MiB/s", list(map(speed, took)), settings=settings, details=details)
    grown = [run["empd"].grown_mib for run in runs]
    yield Figure(name="upload.memory", value=max(grown), unit="MiB", samples=grown, target=GROWN_MIB, settings=settings)
    for way, target in (("bare", TO_BARE), ("bare_single", None)):
        ratios = [speed(run["empd"]) / speed(run[way]) for run in runs]
        yield median_of(f"upload.empd_to_{way}", "ratio", ratios, target=target, settings=settings)
    ratios = [cpu_s(run["empd"]) / cpu_s(run["bare"]) for run in runs]
    yield median_of("upload.cpu_to_bare", "ratio", ratios, settings=settings)


def show(lines: list[dict[str, Any]]) -> None:
    """The figures as a table; behind those of a way what it took."""
    rows = []
    for line in lines:
        took = line["details"]
        said = [
            f"{shown(took[name])} {unit}"
            for name, unit in (("client_cpu_s_per_gib", "s"), ("server_cpu_s_per_gib", "s"), ("grown_mib", "MiB"))
            if name in took
        ]
        value = f"{shown(line['value'])} {line['unit']}"
        span = f"{shown(line['min'])} … {shown(line['max'])}"
        rows.append((line["name"], value, span, *(said or ["", "", ""]), line["bound"] or "", line["verdict"] or ""))
    columns = ("figure", ">value", ">runs", ">client CPU/GiB", ">server CPU/GiB", ">grown", ">bound", "verdict")
    output.console().print(output.table(columns, rows))


def _obey(_: click.Context, __: click.Parameter, order: str | None) -> None:
    if order is not None:
        given = msgspec.json.decode(order, type=Order)
        print(msgspec.json.encode(uvloop.run(WAYS[given.way](given))).decode())
        sys.exit()


@click.command()
@click.option("--mib", default=2048, show_default=True, type=click.IntRange(MIB_MIN), help="Size of the file.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Uploads in each way.")
@click.option("--json", "file", type=click.File("w", lazy=False), help="Write lines like those of `empd bench` here.")
@click.option("--order", hidden=True, is_eager=True, expose_value=False, callback=_obey)
def main(mib: int, rounds: int, file: IO[str] | None) -> None:
    """Upload a large file with empd and with azure-storage-blob alone. The exit code is 1 when a bound is missed."""
    # A bench that is told to end takes its servers with it, as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    where = {**machine.describe(PLACE), "quick": mib < 1024, "endpoint": ""}
    runs = []
    try:
        for run in rounds_of(mib, rounds):
            runs.append(run)
            speeds = ", ".join(f"{way} {mib / run[way].seconds:.0f} MiB/s" for way in WAYS)
            click.echo(f"round {len(runs)} of {rounds}: {speeds}; load {os.getloadavg()[0]:.1f}", err=True)
    except BenchError as error:
        raise click.ClickException(str(error)) from None
    lines = [{**one.as_line(SCENARIO, where["cores"]), "machine": where} for one in figures(mib, runs)]
    if file is not None:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    show(lines)
    sys.exit(any(line["verdict"] == "missed" for line in lines))


if __name__ == "__main__":
    main()
