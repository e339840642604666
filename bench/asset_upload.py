"""A large file to Azure Blob Storage: throughput beside azure-storage-blob alone, and the memory that it takes.

    python bench/asset_upload.py [--mib 2048] [--rounds 3]

Each upload runs in a process of its own, to an Azurite of its own on this machine (`make unit` installs it), with
nothing of the one before left to be written; the order turns around from round to round. `bare` is
`BlobClient.upload_blob` of the open file, with as many blocks at once as empd sends; `bare 1` the same with the
library's default of one. Memory is what the process's peak grew by while it uploaded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

WAYS = ("bare", "empd", "bare 1")
CONTAINER = "bench"


async def bare(connection: str, path: Path, at_once: int) -> None:
    """azure-storage-blob and nothing else."""
    from azure.storage.blob.aio import BlobServiceClient

    async with BlobServiceClient.from_connection_string(connection) as service:
        blob = service.get_blob_client(CONTAINER, f"bare-{at_once}")
        await measured(lambda: upload(blob, path, at_once))


async def upload(blob, path: Path, at_once: int) -> None:  # noqa: ANN001
    with path.open("rb") as file:
        await blob.upload_blob(file, overwrite=True, max_concurrency=at_once)


async def empd(connection: str, path: Path) -> None:
    """What `context.assets.save(path)` does."""
    from empd.asset import AssetConfig
    from empd.assets.naming import Mark
    from empd.assets.saver import Saver

    config = AssetConfig(provider="azure", container=CONTAINER, connection_string=connection)
    saver = Saver(config, Path(), 0)
    await saver.open()
    assets = saver.bind(Mark("b" * 32, 1, time.time_ns()), {"ctx": {"filename": "large.bin"}})
    await measured(lambda: assets.save(path))
    await saver.close()


async def measured(work) -> None:  # noqa: ANN001
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before_kib, cpu_s, began_s = peak_kib(), time.process_time(), time.perf_counter()
    await work()
    seconds = time.perf_counter() - began_s
    figures = {"seconds": seconds, "cpu_s": time.process_time() - cpu_s, "grown_mib": (peak_kib() - before_kib) / 1024}
    print(json.dumps(figures))


def peak_kib() -> int:
    """The most memory that this process had since its peak was reset."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def one(way: str, connection: str, path: Path) -> dict[str, float]:
    """One upload in a fresh process."""
    command = [sys.executable, __file__, "--way", way, "--connection", connection, "--path", str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def alone(way: str, path: Path) -> dict[str, float]:
    """One upload to a store that holds nothing yet."""
    from tests.azurite import Azurite

    os.sync()
    with Azurite(in_memory=False) as azurite:
        azurite.store(CONTAINER)
        return one(way, azurite.connection_string, path)


def compare(mib: int, rounds: int) -> None:
    """Runs all ways in turn and prints the medians."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="empd-bench-", dir="/tmp") as folder:
        path = Path(folder, "file")
        with path.open("wb") as file:
            for _ in range(mib):
                file.write(os.urandom(1 << 20))
        for number in range(rounds):
            for way in WAYS if number % 2 == 0 else reversed(WAYS):
                found[way].append(alone(way, path))
    speeds = {way: mib / statistics.median(run["seconds"] for run in runs) for way, runs in found.items()}
    for way, runs in found.items():
        grown = max(run["grown_mib"] for run in runs)
        cpu_s = statistics.median(run["cpu_s"] for run in runs)
        share = speeds[way] / speeds["bare"]
        print(f"{way:7} {speeds[way]:7.0f} MiB/s {share:6.0%} of bare  {grown:5.0f} MiB grown  {cpu_s:5.1f} s of CPU")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--connection")
    parser.add_argument("--path", type=Path)
    options = parser.parse_args()
    if options.way is None:
        compare(options.mib, options.rounds)
    elif options.way == "empd":
        uvloop.run(empd(options.connection, options.path))
    else:
        uvloop.run(bare(options.connection, options.path, 1 if options.way == "bare 1" else 6))


if __name__ == "__main__":
    main()
