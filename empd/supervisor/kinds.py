"""The child kinds, one row each: entry, limits, whom it hears of, and when its silence means that it hangs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from empd.lifecycle import ChildKind
from empd.settings import Settings
from empd.supervisor.restart import Policy

_ALL = frozenset(ChildKind) - {ChildKind.SERVER}
# How long a stopping worker may wait for the broker to take its last results.
_SETTLE_S = 6.0


class Kind(NamedTuple):
    """One row. `entry` is "module:function"; `heartbeat_s` 0 turns the watch off."""

    entry: str
    policy: Policy
    hears_of: frozenset[ChildKind] = frozenset()
    heartbeat_s: float = 0.0
    may_hold_jobs: bool = False  # silence is lawful while a job runs: native code may hold the interpreter
    oom_score_adj: int = 0  # above the supervisor's own: whom the kernel takes first when memory runs out


Kinds = Mapping[ChildKind, Kind]


def kinds(settings: Settings) -> dict[ChildKind, Kind]:
    """The table, with the limits that the settings carry."""
    # However slow the beat is set, one that is late is not yet one that has stopped.
    silence_s = max(15.0, 10 * settings.heartbeat_s)
    base = Policy(drain_s=settings.drain_s, term_grace_s=settings.term_grace_s)
    return {
        # Its own entry in the mapping says how long it may take to start and to stop (`Plan.policy`).
        ChildKind.SERVER: Kind(
            "empd.server.process:main",
            base._replace(budget=10, backoff_first_s=1.0, backoff_max_s=30.0),
            heartbeat_s=silence_s,
            oom_score_adj=300,
        ),
        # Replay takes as long as the journal is long; a broker that is away holds up everybody, so it waits least.
        ChildKind.BROKER: Kind(
            "empd.broker.process:main",
            base._replace(start_s=600.0, stop_s=10.0, backoff_max_s=2.0, open_s=5.0, open_max_s=30.0, drain_s=10.0),
            _ALL,
            heartbeat_s=silence_s,
        ),
        ChildKind.WEB: Kind(
            "empd.web.process:main",
            base._replace(drain_s=5.0, start_s=30.0),
            _ALL,
            heartbeat_s=silence_s,
            oom_score_adj=100,
        ),
        ChildKind.TELEMETRY: Kind(
            "empd.telemetry.process:main",
            base._replace(drain_s=2.0, stop_s=2.0, term_grace_s=1.0, open_max_s=60.0),
            heartbeat_s=silence_s,
            oom_score_adj=200,
        ),
        ChildKind.WORKER: Kind(
            "empd.worker.process:main",
            # It is READY when its models are loaded, which takes minutes; and it stops its jobs before it stops.
            base._replace(start_s=1800.0, budget=10, stop_s=settings.term_grace_s + _SETTLE_S),
            heartbeat_s=silence_s,
            may_hold_jobs=True,
            oom_score_adj=300,
        ),
    }
