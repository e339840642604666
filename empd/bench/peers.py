"""Other job systems, measured by `make bench-peers`, one after the other in one run.

The same jobs for all: 100 bytes in, 100 bytes out, two worker processes on this machine, every result known to the
submitting program. Each in the setting that its own documentation recommends for speed and in the one it recommends so
that accepted jobs survive; a system without one has no durable figure.

Every run of jobs takes one to two seconds, and what takes long is done less often (`samples`). A job whose worker was
killed is waited for 15 s, with NATS 40 s; where it has not started again by then, the figure is that time.
"""

from __future__ import annotations

from collections.abc import Iterator

from empd.bench.daemon import Where
from empd.bench.figures import Figure, Plot, Scenario
from empd.bench.running import BenchError


def _measure(size: None, where: Where) -> Iterator[Figure]:
    """Peers are measured in an environment of their own. Raises BenchError."""
    raise BenchError("peers are measured by `make bench-peers`, in an environment of their own")


PEERS = Scenario(
    "peers",
    "other job systems beside empd, each in its fast and its durable setting",
    _measure,
    None,
    None,
    (
        Plot("Throughput, jobs/s", "peer", "setting", {"of": "throughput"}, log_y=True),
        Plot("One job at a time, p50 in ms", "peer", "setting", {"of": "latency"}, log_y=True),
        Plot("16 MiB in and out, MiB/s", "peer", "setting", {"of": "payload"}, log_y=True),
        Plot("Memory of each waiting job, bytes", "peer", "setting", {"of": "memory"}, log_y=True),
        Plot("A killed worker's job starts again after, ms", "peer", "setting", {"of": "recovery"}, log_y=True),
    ),
)
