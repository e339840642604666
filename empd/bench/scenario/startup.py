"""How long the daemon takes to be ready, and the command line to answer."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median

import msgspec

from empd.bench.daemon import Daemon, Where, as_installed, noop_mapping
from empd.bench.figures import Figure, Plot, Target, median_of

HELP_TARGET, READY_TARGET = Target(150.0, cores=4), Target(500.0, cores=4)

PLOTS = (Plot("Start-up", "of"),)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How often each is begun."""

    starts: int = 7
    helps: int = 15


QUICK = Size(starts=2, helps=3)


def measure(size: Size, where: Where) -> Iterator[Figure]:
    """`startup.help` and `startup.ready`, in ms."""
    settings = msgspec.to_builtins(size)
    bare: list[float] = []
    answered: list[float] = []
    for _ in range(size.helps):
        bare.append(_run_ms("-c", "pass"))
        answered.append(_run_ms("-m", "empd", "--help"))
    details = {"bare_interpreter_ms": median(bare)}
    axes = {"of": "empd --help"}
    yield median_of("startup.help", "ms", answered, target=HELP_TARGET, axes=axes, details=details, settings=settings)
    ready: list[float] = []
    for _ in range(size.starts):
        with Daemon(noop_mapping(), where.place) as daemon:
            ready.append(daemon.ready_s * 1e3)
    axes = {"of": "empd run to READY"}
    settings["workers"] = 2
    yield median_of("startup.ready", "ms", ready, target=READY_TARGET, axes=axes, settings=settings)


def _run_ms(*arguments: str) -> float:
    begun_s = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=as_installed())
    return (time.perf_counter() - begun_s) * 1e3
