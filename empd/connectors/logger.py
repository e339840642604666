"""What connectors write to the daemon's log: one structured record an event, on structlog.

Every record has `timestamp`, `level`, `event`, `machine`, `worker`, `service`, `connector`, `protocol`, and `job` where
it is about one. Events of a connector's life have fixed names (`job_received`, `job_started`, `job_progress`,
`job_completed`, `job_failed`, `health_check`, `service_…`); a service's own facts are declared as a `ServiceLog`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any, ClassVar, Self

import msgspec

from empd.connectors.context import Context, JobView
from empd.connectors.failures import describe
from empd.job import format_id

# structlog imports rich where it is installed, for its console: 4 MiB that a daemon's processes would never use.
if "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]
    import structlog

    del sys.modules["rich"]
else:
    import structlog

LEVELS = ("debug", "info", "warning", "error")

Record = MutableMapping[str, Any]
Emit = Callable[[Record], None]


class ServiceLog(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Base of a service's declared log schema: its fields are the record's fields.

    class ComfyUILog(ServiceLog):
        schema = "comfyui"
        prompt_id: str = ""
    """

    schema: ClassVar[str] = "service"


class _Emitter:
    """structlog's innermost logger: every level ends in one function."""

    def __init__(self, emit: Emit) -> None:
        self.debug = self.info = self.warning = self.error = emit


class ConnectorLogger:
    """Writes records with the fields bound to it. No method raises, blocks or returns anything."""

    def __init__(self, bound: Any) -> None:
        self._bound = bound

    @classmethod
    def to(cls, emit: Emit, least: str = "info", **fields: Any) -> Self:
        """A logger whose records of level `least` and above go to `emit` as plain dicts."""
        bound = structlog.wrap_logger(
            _Emitter(emit),
            processors=[_stamp, structlog.processors.format_exc_info, _last],
            wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, least.upper())),
            context_class=dict,
            cache_logger_on_first_use=True,
        )
        return cls(bound.bind(**fields))

    def bind(self, **fields: Any) -> Self:
        """The same logger with further fields on every record."""
        return type(self)(self._bound.bind(**fields))

    def with_job(self, job: JobView | Context) -> Self:
        """The same logger for one attempt at a job."""
        view = job.job if isinstance(job, Context) else job
        return self.bind(job=format_id(view.id), attempt=view.attempt)

    def debug(self, event: str, **fields: Any) -> None:
        """A record that only `log_level = "debug"` shows."""
        self._bound.debug(event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        """A record."""
        self._bound.info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """A record that an operator should see."""
        self._bound.warning(event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """A record that an operator must see."""
        self._bound.error(event, **fields)

    # --- the events that every connector has -------------------------------------------------------------------------

    def job_received(self, input_bytes: int) -> None:
        """A job has come."""
        self._bound.debug("job_received", input_bytes=input_bytes)

    def job_started(self) -> None:
        """Its work begins."""
        self._bound.debug("job_started")

    def job_progress(self, fraction: float, message: str = "") -> None:
        """It moves."""
        self._bound.debug("job_progress", progress=round(fraction, 4), message=message)

    def job_completed(self, duration_s: float, **fields: Any) -> None:
        """It ended well."""
        self._bound.info("job_completed", duration_s=round(duration_s, 6), **fields)

    def job_failed(self, error: BaseException, duration_s: float, **fields: Any) -> None:
        """It failed."""
        failure = str(getattr(error, "failure", "") or "internal")
        reason = describe(error)
        self._bound.warning("job_failed", failure=failure, reason=reason, duration_s=round(duration_s, 6), **fields)

    def health_check(self, healthy: bool, reason: str = "", **fields: Any) -> None:
        """Health was asked for, and is another than before."""
        write = self._bound.info if healthy else self._bound.warning
        write("health_check", healthy=healthy, reason=reason, **fields)

    def service_event(self, name: str, level: str = "info", **fields: Any) -> None:
        """Something happened at the service: `service_<name>`."""
        getattr(self._bound, level if level in LEVELS else "info")(f"service_{name}", **fields)

    def service(self, record: ServiceLog, name: str = "report") -> None:
        """A service's declared facts, as `service_<name>` with the schema's name."""
        self._bound.info(f"service_{name}", schema=record.schema, **msgspec.to_builtins(record))


def _stamp(_: Any, level: str, record: Record) -> Record:
    now_s = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s)) + f".{int(now_s % 1 * 1000):03d}Z"
    return {"timestamp": stamp, "level": level, "event": record.pop("event", ""), **record}


def _last(_: Any, __: str, record: Record) -> tuple[tuple[Record], dict[str, Any]]:
    """What structlog calls the innermost logger with."""
    return (record,), {}


SILENT = ConnectorLogger.to(lambda record: None, "error")
"""Where nobody reads."""
