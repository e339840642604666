"""`/metrics`: what children sent, what the board shows, what the broker says, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from empd import clock
from empd.memory.board import UNKNOWN, Board, SlotState, SlotView
from empd.web.series import Key, Snapshots, Tally, Value

STALE_S = 60.0
"""Series of a child that is not on the board any more live this much longer."""

HELP = {
    "empd_jobs_total": "Jobs that ended, by service, outcome (also as status) and cause.",
    "empd_job_duration_seconds": "Run of the last attempt of jobs that ended, by service and success.",
    "empd_service_health": "1 while a worker's service takes jobs.",
    "empd_job_queue_seconds": "From submit to the start of the last attempt.",
    "empd_job_run_seconds": "From the start of the last attempt to the end.",
    "empd_job_attempts_total": "Attempts of jobs that ended.",
    "empd_attempts_total": "Attempts that ended, by worker, service, outcome and cause.",
    "empd_attempt_run_seconds": "How long attempts ran.",
    "empd_queue_depth": "Jobs that wait, by service.",
    "empd_queue_oldest_age_seconds": "How long the oldest waiting job of a service has waited.",
    "empd_worker_state": "1 for the state that a child is in.",
    "empd_worker_restarts_total": "Restarts of a child's slot.",
    "empd_worker_jobs_running": "Jobs that a worker holds now.",
    "empd_worker_rss_bytes": "Resident memory of a child.",
    "empd_worker_heartbeat_age_seconds": "Since a child last showed that it is alive.",
    "empd_gpu_utilisation_ratio": "How busy a GPU is, 0 to 1.",
    "empd_gpu_memory_used_bytes": "Memory in use on a GPU.",
    "empd_gpu_memory_total_bytes": "Memory of a GPU.",
    "empd_gpu_temperature_celsius": "Temperature of a GPU.",
    "empd_gpu_power_watts": "Power that a GPU draws.",
    "empd_gpu_energy_joules_total": "Energy that a GPU has used since its driver was loaded.",
    "empd_gpu_xid": "The last Xid error of a GPU, 0 for none.",
    "empd_broker_up": "1 while the broker answers.",
    "empd_history_through_seq": "Journal row up to which history holds every ended job.",
    "empd_telemetry_bad_frames_total": "Frames on the telemetry and history sockets that are none.",
    "empd_sse_streams": "Event streams that are open.",
    "empd_http_requests_total": "Requests answered, by route and status.",
    "empd_http_request_seconds": "Time to answer a request (streams left out).",
}


class Metrics:
    """Everything that `/metrics` shows. The process updates it; `render` reads it."""

    def __init__(self, board: Board) -> None:
        self.snapshots = Snapshots()
        self.tally = Tally()  # this process's own, counted on the event loop
        self.jobs = Tally()  # the projector's, counted in its thread
        self.gauges: dict[Key, Value] = {}
        self._board = board
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collected(self))

    def render(self) -> bytes:
        """The text format."""
        return generate_latest(self._registry)

    def set_gauge(self, name: str, value: float, **labels: str) -> None:
        """Sets one gauge of this process."""
        self.gauges[Key("gauge", name, tuple(sorted(labels.items())))] = Value(value)

    def set_queues(self, broker: dict[str, Any] | None) -> None:
        """Takes the broker's status (None: it does not answer); services that it no longer names are dropped."""
        for key in [key for key in self.gauges if key.name.startswith("empd_queue_")]:
            del self.gauges[key]
        self.set_gauge("empd_broker_up", 0.0 if broker is None else 1.0)
        services = (broker or {}).get("services")
        for name, service in services.items() if isinstance(services, dict) else ():
            if not isinstance(service, dict):
                continue
            for lane in ("waiting", "delayed"):
                count = service.get(lane)
                if isinstance(count, int):
                    self.set_gauge("empd_queue_depth", count, service=name, lane=lane)
            age = service.get("oldest_age_s")
            if isinstance(age, (int, float)):
                self.set_gauge("empd_queue_oldest_age_seconds", age, service=name)

    def sweep(self) -> None:
        """Drops the series of children that are gone."""
        living = [view.identity.name for view in self._board.read_taken() if _lives(view) and view.identity]
        now_ns = clock.now().mono_ns
        self.snapshots.drop_gone(living, now_ns - clock.seconds_to_ns(STALE_S))

    def values(self) -> Iterator[tuple[Key, Value]]:
        """Every series, from every source."""
        yield from self.snapshots.values()
        yield from self.tally.values()
        yield from self.jobs.values()
        yield from list(self.gauges.items())
        now_ns = clock.now().mono_ns
        for view in self._board.read_taken():
            yield from board_values(view, now_ns)
        yield Key("counter", "empd_metrics_rejected_total", ()), Value(self.snapshots.rejected)


def _lives(view: SlotView) -> bool:
    return view.identity is not None and view.identity.state not in (SlotState.EMPTY, SlotState.DEAD)


def board_values(view: SlotView, now_ns: int) -> Iterator[tuple[Key, Value]]:
    """What one slot of the board says."""
    identity = view.identity
    if identity is None or not _lives(view):
        return
    child: tuple[tuple[str, str], ...] = (("kind", identity.kind.name.lower()), ("worker", identity.name))
    for state in SlotState:
        if state is not SlotState.EMPTY:
            labels = (("kind", child[0][1]), ("state", state.name.lower()), ("worker", identity.name))
            yield Key("gauge", "empd_worker_state", labels), Value(float(identity.state is state))
    yield Key("counter", "empd_worker_restarts_total", child), Value(identity.restarts)
    activity = view.own_activity
    if activity is not None:
        age_s = max(0, now_ns - activity.heartbeat_mono_ns) / clock.NS_PER_S
        yield Key("gauge", "empd_worker_heartbeat_age_seconds", child), Value(age_s)
        yield Key("gauge", "empd_worker_rss_bytes", child), Value(activity.rss_bytes)
    if identity.device_uuid and view.gauges is not None and not identity.virtual:
        yield from _gpu_values(view, identity.device_uuid)


def _gpu_values(view: SlotView, uuid: str) -> Iterator[tuple[Key, Value]]:
    gauges = view.gauges
    if gauges is None or gauges.at_mono_ns == 0:
        return
    labels = (("gpu_uuid", uuid),)
    readings = (
        ("gauge", "empd_gpu_utilisation_ratio", gauges.utilisation_percent, 100),
        ("gauge", "empd_gpu_memory_used_bytes", gauges.memory_used_bytes, 1),
        ("gauge", "empd_gpu_memory_total_bytes", gauges.memory_total_bytes, 1),
        ("gauge", "empd_gpu_temperature_celsius", gauges.temperature_c, 1),
        ("gauge", "empd_gpu_power_watts", gauges.power_mw, 1000),
        ("counter", "empd_gpu_energy_joules_total", gauges.energy_mj, 1000),
        ("gauge", "empd_gpu_xid", gauges.xid, 1),
    )
    for kind, name, reading, per in readings:
        if reading != UNKNOWN:
            yield Key(kind, name, labels), Value(reading / per)


class _Collected(Collector):
    """Families made afresh at each scrape; one family for each name, whoever its samples came from."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return families(self._metrics.values())


def families(values: Iterable[tuple[Key, Value]]) -> list[Metric]:
    """Series grouped into families. A name has one kind, the first one met; a series met twice counts once."""
    kinds: dict[str, str] = {}
    found: dict[str, dict[Key, Value]] = {}
    for key, value in values:
        name = key.name.removesuffix("_total") if key.kind == "counter" else key.name
        if kinds.setdefault(name, key.kind) == key.kind:
            found.setdefault(name, {}).setdefault(key, value)
    return [_family(name, kinds[name], series) for name, series in sorted(found.items())]


def _family(name: str, kind: str, series: dict[Key, Value]) -> Metric:
    text = HELP.get(name) or HELP.get(f"{name}_total") or name.replace("_", " ")
    if kind == "counter":
        counter = CounterMetricFamily(name, text)
        for key, value in series.items():
            counter.add_sample(f"{name}_total", dict(key.labels), value.value)
        return counter
    if kind == "gauge":
        gauge = GaugeMetricFamily(name, text)
        for key, value in series.items():
            gauge.add_sample(name, dict(key.labels), value.value)
        return gauge
    histogram = HistogramMetricFamily(name, text)
    for key, value in series.items():
        labels = dict(key.labels)
        for bound, count in value.buckets:
            histogram.add_sample(f"{name}_bucket", {**labels, "le": _bound(bound)}, count)
        total = value.buckets[-1][1] if value.buckets else 0
        if not value.buckets or value.buckets[-1][0] != float("inf"):
            histogram.add_sample(f"{name}_bucket", {**labels, "le": "+Inf"}, total)
        histogram.add_sample(f"{name}_count", labels, total)
        histogram.add_sample(f"{name}_sum", labels, value.value)
    return histogram


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(float(bound))
