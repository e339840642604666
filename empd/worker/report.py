"""What leaves a worker and may be lost: progress, partial results, logs, metrics. Never waits, never raises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

import msgspec
import zmq

from empd.connectors.context import Context
from empd.connectors.failures import sayable
from empd.payload import encode_value
from empd.wire.telemetry import JobLog, JobPartial, JobProgress, Metrics, Sample, ServiceFacts, Telemetry

INTERVAL_S = 0.1
METRICS_INTERVAL_S = 5.0
PARTIAL_BYTES_MAX = 512 * 1024
_LOG_WAITING_BYTES_MAX = 256 * 1024
_CUT = "… the rest of this attempt's log is not kept"

Claim = tuple[int, int]


class Reporter:
    """The PUSH socket to the web process. Of each job, the newest progress and partial leave ten times a second."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, log_bytes_max: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._log_bytes_max = log_bytes_max
        self._encode = msgspec.msgpack.Encoder().encode
        self._progress: dict[Claim, JobProgress] = {}
        self._partial: dict[Claim, JobPartial] = {}
        self._logs: dict[Claim, list[str]] = {}
        self._facts: dict[str, Callable[[], ServiceFacts]] = {}
        self._log_bytes = 0
        self._next_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.dropped = 0
        self._socket = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 1000)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.connect(endpoint)

    def progress(self, context: Context, fraction: float, message: str, step: int, steps: int) -> None:
        """The newest progress of a job."""
        claim = (context.job.id, context.job.epoch)
        self._progress[claim] = JobProgress(*claim, time.time_ns(), fraction, sayable(message), step, steps)
        self._soon()

    def partial(self, context: Context, value: object) -> None:
        """The newest partial result of a job; one that cannot be encoded, or is too large, is dropped."""
        try:
            encoding, data = encode_value(value)
        except (TypeError, ValueError, OverflowError, RecursionError):
            self.dropped += 1
            return
        if len(data) > PARTIAL_BYTES_MAX:
            self.dropped += 1
            return
        claim = (context.job.id, context.job.epoch)
        self._partial[claim] = JobPartial(*claim, time.time_ns(), encoding, bytes(data))
        self._soon()

    def log(self, context: Context, text: str) -> None:
        """One line of a job's log; past the attempt's bound one line says that there was more."""
        if context.log_bytes < 0:
            return
        text = sayable(text)
        size = len(text.encode()) + 1
        if context.log_bytes + size > self._log_bytes_max:
            context.log_bytes = -1
            text, size = _CUT, len(_CUT)
        else:
            context.log_bytes += size
        self._logs.setdefault((context.job.id, context.job.epoch), []).append(text)
        self._log_bytes += size
        if self._log_bytes > _LOG_WAITING_BYTES_MAX:
            self.flush()
        else:
            self._soon()

    def metrics(self, source: str, generation: int, samples: Iterable[Sample]) -> None:
        """A snapshot of all series."""
        self._push(Metrics(source, generation, list(samples)))

    def facts(self, service: str, make: Callable[[], ServiceFacts]) -> None:
        """The facts of a service are others now; they are made when they leave."""
        self._facts[service] = make
        self._soon()

    def flush(self) -> None:
        """Sends what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._next_s = self._loop.time() + INTERVAL_S
        now_ns = time.time_ns()
        for claim, lines in self._logs.items():
            self._push(JobLog(*claim, now_ns, "\n".join(lines)))
        for make in self._facts.values():
            self._push(make())
        self._facts.clear()
        for waiting in (self._progress, self._partial):
            for message in waiting.values():
                self._push(message)
            waiting.clear()
        self._logs.clear()
        self._log_bytes = 0

    def close(self) -> None:
        """Sends what waits and closes."""
        self.flush()
        self._socket.close(linger=100)

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(max(0.0, self._next_s - self._loop.time()), self._due)

    def _due(self) -> None:
        self._timer = None
        self.flush()

    def _push(self, message: Telemetry) -> None:
        try:
            self._socket.send(self._encode(message), zmq.NOBLOCK)
        except (zmq.Again, TypeError, ValueError, OverflowError, RecursionError):  # the others must not wait behind it
            self.dropped += 1
