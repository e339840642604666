"""Traces: what a job's spans are, exported to a collector on loopback."""

from __future__ import annotations

import gzip
import http.server
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider

from empd.connectors.tracing import Traceparent, tracer_for
from empd.errors import EmpdError
from tests.box import Box, mapping_of, service, wait_until


class Collector:
    """Takes OTLP over HTTP, as a collector does, and keeps every span."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path == "/v1/traces":
                    collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            process = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        {
                            "name": span.name,
                            "trace": span.trace_id.hex(),
                            "id": span.span_id.hex(),
                            "parent": span.parent_span_id.hex(),
                            "start": span.start_time_unix_nano,
                            "end": span.end_time_unix_nano,
                            "error": span.status.code == 2,
                            "process": process["empd.process"],
                            **{each.key: each.value.string_value for each in span.attributes},
                        }
                    )

    def of(self, job: str, count: int) -> dict[str, dict[str, Any]]:
        """The spans of the trace that a job belongs to, by their first word, once there are `count`."""

        def all_there() -> list[dict[str, Any]]:
            ids = {span["trace"] for span in self.spans if span.get("empd.job") == job}
            found = [span for span in self.spans if span["trace"] in ids]
            return found if len(found) >= count else []

        return {span["name"].split()[0]: span for span in wait_until(all_there, f"{count} spans of {job}")}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    server = Collector()
    yield server
    server.close()


@pytest.fixture(scope="module")
def daemon(collector: Collector) -> Iterator[Box]:
    mapping = mapping_of(
        simulation=service(), tracing=service("PythonConnector", api_config={"callable": "traced:names_its_trace"})
    )
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    before = {name: os.environ.get(name) for name in environ}
    os.environ.update(environ)
    try:
        with Box(mapping) as box:
            yield box
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def test_a_job_without_a_trace_has_one_of_its_own(daemon: Box, collector: Collector) -> None:
    with daemon.client() as client:
        handle = client.submit("tracing", {})
        seen = handle.result(30)["trace"]
    spans = collector.of(handle.id, 3)
    assert set(spans) == {"job", "queue", "run"}
    assert len({span["trace"] for span in spans.values()}) == 1
    assert spans["job"]["parent"] == ""
    assert spans["queue"]["parent"] == spans["run"]["parent"] == spans["job"]["id"]
    assert (spans["run"]["process"], spans["job"]["process"]) == ("tracing-0", "web")
    assert spans["job"]["start"] == spans["queue"]["start"] <= spans["queue"]["end"] <= spans["job"]["end"]
    # What the connector calls is told of the attempt's own span.
    assert Traceparent.parse(seen) == (int(spans["run"]["trace"], 16), int(spans["run"]["id"], 16), True)


def test_a_submitter_with_a_trace_has_the_job_in_it(daemon: Box, collector: Collector) -> None:
    provider = TracerProvider()
    with provider.get_tracer("t").start_as_current_span("request") as span, daemon.client() as client:
        handle = client.submit("simulation", {"duration_s": 0})
        handle.result(30)
        above = span.get_span_context()
    spans = collector.of(handle.id, 3)
    assert {each["trace"] for each in spans.values()} == {f"{above.trace_id:032x}"}
    assert spans["run"]["parent"] == spans["job"]["id"]
    given = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    with daemon.client() as client:
        handle = client.submit("simulation", {"duration_s": 0}, trace=given)
        handle.result(30)
    spans = collector.of(handle.id, 3)
    assert (spans["job"]["trace"], spans["job"]["parent"]) == ("ab" * 16, "cd" * 8)


def test_a_trace_that_is_not_sampled_is_not_exported(daemon: Box, collector: Collector) -> None:
    with daemon.client() as client:
        unsampled = client.submit("simulation", {"duration_s": 0}, trace="00-" + "12" * 16 + "-" + "34" * 8 + "-00")
        unsampled.result(30)
        later = client.submit("simulation", {"duration_s": 0})
        later.result(30)
    collector.of(later.id, 3)
    assert not any(span["trace"] == "12" * 16 for span in collector.spans)


def test_a_failed_attempt_is_an_error_in_its_trace(daemon: Box, collector: Collector) -> None:
    with daemon.client() as client:
        handle = client.submit("simulation", {"fault": "refuse"}, retries=0)
        with pytest.raises(EmpdError):
            handle.result(30)
    spans = collector.of(handle.id, 3)
    assert (spans["run"]["error"], spans["run"]["error.type"]) == (True, "refused")
    assert (spans["job"]["error"], spans["job"]["error.type"]) == (True, "refused")


def test_without_an_endpoint_there_is_no_tracer() -> None:
    for environ in ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}):
        tracer, problem = tracer_for("x", environ)
        assert (tracer.on, problem) == (False, "")


@given(st.builds(Traceparent, st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans()))
def test_a_traceparent_is_read_as_it_was_written(traceparent: Traceparent) -> None:
    assert Traceparent.parse(str(traceparent)) == traceparent


@pytest.mark.parametrize(
    "text", ["", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "ff-" + "1" * 32 + "-" + "1" * 16 + "-01"]
)
def test_what_is_no_traceparent_is_passed_over(text: str) -> None:
    assert Traceparent.parse(text) is None
    assert Traceparent.parse(None) is None
    assert not trace.get_current_span().get_span_context().is_valid
