"""Jobs take part in the trace of whoever submits them: nothing is done unless OpenTelemetry is in use here already."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def with_trace(service: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options with `trace`, the W3C traceparent of a span for this submit, inside the caller's present span.

    They stay as they are when they name a trace, when the caller has not imported OpenTelemetry, or is in no span.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or options.get("trace") is not None:
        return options
    if not trace.get_current_span().get_span_context().is_valid:
        return options
    span = trace.get_tracer("empd.client").start_span(f"submit {service}", kind=trace.SpanKind.PRODUCER)
    context = span.get_span_context()
    span.end()
    return {**options, "trace": f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"}
