"""Takes what children push and may be lost: progress, log lines, partial results, metric snapshots."""

from __future__ import annotations

import zmq

from empd import clock
from empd.errors import ProtocolError
from empd.job import format_id
from empd.payload import decode_value
from empd.web import render
from empd.web.events import Event, Hub
from empd.web.facts import Facts
from empd.web.inlet import Inlet
from empd.web.joblog import JobLogs
from empd.web.metrics import Metrics as Shown
from empd.wire import codec
from empd.wire.telemetry import JobLog, JobPartial, JobProgress, Metrics, ServiceFacts

QUEUE_MAX = 10_000


class TelemetrySocket:
    """A PULL socket. `bad_frames` counts what was no telemetry."""

    def __init__(self, endpoint: str, hub: Hub, logs: JobLogs, metrics: Shown, facts: Facts) -> None:
        self._hub = hub
        self._logs = logs
        self._metrics = metrics
        self._facts = facts
        self.bad_frames = 0
        self._inlet = Inlet(endpoint, zmq.PULL, self._take, QUEUE_MAX)

    def close(self) -> None:
        """Stops listening. Closing twice is fine."""
        self._inlet.close()

    def _take(self, parts: list[bytes]) -> None:
        try:
            said = codec.decode_telemetry(parts[-1])
        except ProtocolError:
            self.bad_frames += 1
            return
        if isinstance(said, Metrics):
            self._metrics.snapshots.update(said, clock.now().mono_ns)
            return
        if isinstance(said, ServiceFacts):
            self._facts.update(said)
            return
        if isinstance(said, JobLog):
            self._logs.add(said)
        elif isinstance(said, JobProgress):
            self._logs.move(said)
        if 0 <= said.id < 1 << 64 and self._hub.wants(said.id):
            self._hub.publish_lossy(said.id, event_of(said))


def event_of(said: JobProgress | JobLog | JobPartial) -> Event:
    """The event that a stream gets; it has no id, for it cannot be had again."""
    head = {"job": format_id(said.id), "at": render.time_of(said.at_ns), "epoch": said.epoch}
    if isinstance(said, JobProgress):
        return Event(0, "progress", render.dumps({**head, "event": "progress", **progress(said)}))
    if isinstance(said, JobLog):
        return Event(0, "log", render.dumps({**head, "event": "log", "text": said.text}))
    return Event(0, "partial", render.dumps({**head, "event": "partial", "value": _partial(said)}))


def progress(said: JobProgress) -> dict[str, object]:
    """How far a job is."""
    return {"fraction": said.fraction, "message": said.message, "step": said.step, "steps": said.steps}


def _partial(said: JobPartial) -> object:
    if said.encoding == "msgpack":
        return render.packed(said.data)
    try:
        return render.jsonable(decode_value(said.encoding, said.data))
    except (ValueError, RecursionError):
        return render.marked(said.data)
