"""OpenTelemetry traces of jobs, with the extra `empd[otel]` and `OTEL_EXPORTER_OTLP_ENDPOINT` set; else nothing at all.

    (the submitter's span) ── job <service>      submit … end, by the web process when the job has ended
                              ├── queue          submit … start of the last attempt, likewise
                              └── run            one for each attempt, by its worker; `context.trace` names it

A job carries the traceparent (W3C) that it was submitted with. One without begins a trace of its own, whose ids are
derived from the job's, so that processes which never spoke of it agree. Sampling, resource and exporter are those of
the SDK's own variables (`OTEL_TRACES_SAMPLER`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_EXPORTER_OTLP_HEADERS`, …).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from empd.connectors.context import Context, JobView
from empd.connectors.failures import ConnectorError
from empd.job import format_id

_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_NOTHING: contextlib.nullcontext[None] = contextlib.nullcontext()


class Traceparent(NamedTuple):
    """A span of some trace, as it crosses processes."""

    trace_id: int
    span_id: int
    sampled: bool = True

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"

    @classmethod
    def parse(cls, text: str | None) -> Traceparent | None:
        """None when the text is no traceparent."""
        match = _TRACEPARENT.fullmatch(text or "")
        if match is None or text is None or text.startswith("ff"):
            return None
        trace_id, span_id = int(match[1], 16), int(match[2], 16)
        return cls(trace_id, span_id, bool(int(match[3], 16) & 1)) if trace_id and span_id else None


class Tracer:
    """Makes spans of jobs; this one makes none. Where spans are made it is an `OtelTracer`."""

    on = False

    def run(self, job: JobView, context: Context) -> contextlib.AbstractContextManager[Any]:
        """The span of one attempt, while it runs."""
        return _NOTHING

    def ended(self, job: EndedJob) -> None:
        """The spans of a job that has ended."""

    def close(self) -> None:
        """Exports what waits."""


class EndedJob(NamedTuple):
    """What the spans of a job say. Times in Unix nanoseconds; `started_ns` 0: it never ran."""

    instance: str
    id: int
    service: str
    trace: str | None
    submitted_ns: int
    started_ns: int
    ended_ns: int
    outcome: str
    failure: str = ""
    attempts: int = 0


class OtelTracer(Tracer):
    """Spans by the OpenTelemetry SDK. One for each process; not for use from two threads at once."""

    on = True

    def __init__(self, process: str) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator

        class Chosen(IdGenerator):
            """Ids that the next span is to have; random ones where none are set."""

            random = RandomIdGenerator()
            trace_id = span_id = 0

            def generate_trace_id(self) -> int:
                return self.trace_id or int(self.random.generate_trace_id())

            def generate_span_id(self) -> int:
                return self.span_id or int(self.random.generate_span_id())

        self._trace = trace
        self._ids = Chosen()
        resource = Resource.create(
            {"service.name": os.environ.get("OTEL_SERVICE_NAME", "empd"), "empd.process": process}
        )
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("empd")

    @contextlib.contextmanager
    def run(self, job: JobView, context: Context) -> Iterator[None]:
        """See Tracer.run."""
        trace = self._trace
        of_job, _ = self._of_job(context.instance, job.id, job.details.trace)
        span = self._tracer.start_span(
            f"run {job.service}",
            self._inside(of_job),
            trace.SpanKind.CONSUMER,
            {"empd.job": format_id(job.id), "empd.service": job.service, "empd.attempt": job.attempt},
        )
        mine = span.get_span_context()
        context.span = str(Traceparent(mine.trace_id, mine.span_id, mine.trace_flags.sampled))
        try:
            # As the current span: what an instrumented client library does for this job becomes its child.
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield
        except BaseException as error:  # raised again; the span says what it was
            failure = str(error.failure) if isinstance(error, ConnectorError) else type(error).__name__
            span.set_attribute("error.type", context.stop_reason or failure)
            span.set_status(trace.StatusCode.ERROR)
            raise
        finally:
            span.end()

    def ended(self, job: EndedJob) -> None:
        """See Tracer.ended."""
        trace = self._trace
        mine, above = self._of_job(job.instance, job.id, job.trace)
        self._ids.trace_id, self._ids.span_id = mine.trace_id, mine.span_id
        try:
            span = self._tracer.start_span(
                f"job {job.service}",
                self._inside(above) if above is not None else trace.set_span_in_context(trace.INVALID_SPAN),
                trace.SpanKind.INTERNAL,
                {
                    "empd.job": format_id(job.id),
                    "empd.service": job.service,
                    "empd.outcome": job.outcome,
                    "empd.attempts": job.attempts,
                },
                start_time=job.submitted_ns,
            )
        finally:
            self._ids.trace_id = self._ids.span_id = 0
        if job.failure:
            span.set_attribute("error.type", job.failure)
            span.set_status(trace.StatusCode.ERROR)
        if job.started_ns:
            inside = trace.set_span_in_context(span)
            queued = self._tracer.start_span(f"queue {job.service}", inside, start_time=job.submitted_ns)
            queued.end(max(job.started_ns, job.submitted_ns))
        span.end(max(job.ended_ns, job.submitted_ns))

    def close(self) -> None:
        """See Tracer.close."""
        self._provider.shutdown()

    def _of_job(self, instance: str, job_id: int, given: str | None) -> tuple[Traceparent, Traceparent | None]:
        """The job's own span, and the one above it where the submitter gave one."""
        above = Traceparent.parse(given)
        digest = hashlib.blake2b(f"{instance} {job_id}".encode(), digest_size=24).digest()
        span_id = int.from_bytes(digest[16:], "big") or 1
        if above is not None:
            return Traceparent(above.trace_id, span_id, above.sampled), above
        trace_id = int.from_bytes(digest[:16], "big") or 1
        # As the SDK will decide when it sees the root, so that no attempt is kept of a trace that is not.
        sampled: Any = self._provider.sampler.should_sample(None, trace_id, "job").decision
        return Traceparent(trace_id, span_id, bool(sampled.is_sampled())), None

    def _inside(self, parent: Traceparent) -> Any:
        trace = self._trace
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if parent.sampled else trace.TraceFlags.DEFAULT)
        known = trace.SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags)
        return trace.set_span_in_context(trace.NonRecordingSpan(known))


def tracer_for(process: str, environ: os._Environ[str] | dict[str, str]) -> tuple[Tracer, str]:
    """The tracer of a process, and what is wrong when traces are asked for and cannot be made."""
    if not any(environ.get(name) for name in _VARIABLES) or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Tracer(), ""
    if importlib.util.find_spec("opentelemetry") is None:
        return Tracer(), "OTEL_EXPORTER_OTLP_ENDPOINT is set and the extra empd[otel] is not installed: no traces"
    try:
        return OtelTracer(process), ""
    except Exception as error:  # whatever a version of the SDK stumbles over must not stop the work
        return Tracer(), f"no traces: {type(error).__name__}: {error}"
