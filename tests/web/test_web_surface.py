"""The surface as a whole: every route answers, OpenAPI lists exactly them, browsers of other sites are kept out."""

from __future__ import annotations

import json
import re
import socket
from html.parser import HTMLParser

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from web_broker import BrokerDouble
from web_harness import Web, wait_for

from empd.web import openapi, render
from empd.web.app import ROUTES
from empd.web.guard import is_own_host, is_same_origin
from empd.web.joblog import JobLogs
from empd.wire.telemetry import JobLog

FIELDS = ["service", "payload", "labels", "after", "blob"]
NAMES = frozenset({"localhost", "box"})


def raw(web: Web, data: bytes) -> int:
    """Sends any bytes; the status of the answer, 0 for none."""
    host, _, port = web.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.makefile("rb").readline()
    match = re.match(rb"HTTP/1\.\d (\d{3})", answer)
    return int(match[1]) if match else 0


# --- OpenAPI ---------------------------------------------------------------------------------------------------------


def references(value: object) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [each for item in value.values() for each in references(item)]
    return [each for item in value for each in references(item)] if isinstance(value, list) else []


def test_openapi_lists_exactly_the_routes_and_resolves() -> None:
    document = json.loads(openapi.document(ROUTES))
    assert document["openapi"].startswith("3.1")
    listed = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert listed == {(route.method, route.path) for route in ROUTES}
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"], reference
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names))


def test_openapi_operations_are_well_formed() -> None:
    document = json.loads(openapi.document(ROUTES))
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["summary"], path
            declared = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
            assert declared == set(re.findall(r"{(\w+)}", path))
            assert all(each["required"] for each in operation["parameters"] if each["in"] == "path")
            assert operation["responses"]
            for code, response in operation["responses"].items():
                assert re.fullmatch(r"[2-5]\d\d", code)
                assert response["description"]
            assert ("requestBody" in operation) == (method in ("post", "put"))
    for schema in document["components"]["schemas"].values():
        assert "enum" in schema or schema["type"] == "object"


def test_every_get_route_answers(module_web: Web) -> None:
    for route in ROUTES:
        if route.method == "GET" and "{" not in route.path and route.gives != "text/event-stream":
            answer = module_web.ask("GET", route.path)
            assert answer.status == 200, (route.path, answer.body)
            assert answer.headers["Content-Type"].startswith(route.gives)
            assert "Content-Security-Policy" in answer.headers


# --- who may talk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost:8780", True), ("127.0.0.1:1", True), ("[::1]:8780", True), ("box", True), ("LOCALHOST.", True),
        ("evil.example", False), ("127.0.0.1.evil.example", False), ("", False), ("a@localhost", True), ("[::1", False),
    ],
)  # fmt: skip
def test_own_hosts(host: str, own: bool) -> None:
    assert is_own_host(host, NAMES) is own


@given(st.text(max_size=60), st.text(max_size=60))
def test_hosts_and_origins_never_raise(one: str, two: str) -> None:
    assert is_own_host(one, NAMES) in (True, False)
    assert is_same_origin(one, two) in (True, False)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "gpu.example.com"}, 202),  # http_hosts
        ({"Host": "gpu.example.com:8443", "Origin": "https://gpu.example.com:8443"}, 202),
        ({"Host": "gpu.example.com", "Origin": "https://evil.example"}, 403),
        ({"Host": "x.gpu.example.com"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Sec_Fetch_Site": "same-origin"}, 202),
        ({}, 202),
    ],
)
def test_other_sites_cannot_submit(module_web: Web, headers: dict[str, str], status: int) -> None:
    assert module_web.ask("POST", "/v1/jobs", {"service": "hold"}, **headers).status == status


def test_own_origin_may_submit_and_nobody_gets_cors(module_web: Web) -> None:
    answer = module_web.ask("POST", "/v1/jobs", {"service": "hold"}, Origin=module_web.url)
    assert answer.status == 202
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert module_web.ask("GET", "/v1/status", Host="evil.example").status == 421


def test_bodies_are_bounded(module_web: Web) -> None:
    answer = module_web.ask("POST", "/v1/jobs", b'{"service": "' + b"x" * (33 << 20))
    assert answer.status == 413
    assert answer.json()["status"] == 413


def test_any_bytes_are_answered_without_a_500(module_web: Web) -> None:
    lines = [
        b"\x00\xff\xfe", b"GET", b"GET / HTTP/9.9\r\n\r\n", b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/jobs/%00%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/jobs?label.%ff=%fe&limit=\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/jobs?label.%ED%A0%80=%ED%A0%80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/jobs?service=%ED%A0%80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/jobs?customer_id=%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n{",
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        b"POST /v1/jobs HTTP/1.1\r\nHost: \xff\r\nContent-Length: 0\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: \xff\xfe\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v1/blobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: \xff\r\nContent-Length: 1\r\n\r\nx",
        b"DELETE /v1/jobs/0000000000000 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ]  # fmt: skip
    for line in lines:
        assert raw(module_web, line) != 500, line
    assert module_web.get("/healthz")["status"] == "ok"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_json_is_answered_without_a_500(module_web: Web, data: st.DataObject) -> None:
    value = data.draw(
        st.recursive(
            st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["service", "payload", "labels", "after", "blob"]) | st.text(max_size=4), inner
                )
            ),
            max_leaves=8,
        )
    )
    assert module_web.ask("POST", "/v1/jobs", value).status in (202, 400, 422, 503)


# --- the page --------------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """Collects what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


def test_page_loads_only_what_is_served_here(module_web: Web) -> None:
    page = module_web.ask("GET", "/")
    links = Links()
    links.feed(page.body.decode())
    loaded = [link for link in links.found if not link.startswith("#")]
    assert {"/page.js", "/page.css"} <= set(loaded)
    for link in loaded:
        assert module_web.ask("GET", link).status == 200, link
    etag = page.headers["ETag"]
    assert module_web.ask("GET", "/", If_None_Match=etag).status == 304


# --- parts of status -------------------------------------------------------------------------------------------------


def test_readyz_says_what_a_job_would_meet(web: Web, broker: BrokerDouble) -> None:
    assert web.ask("GET", "/readyz").status == 200
    broker.problems = ["no worker takes jobs"]
    answer = wait_for(lambda: (a := web.ask("GET", "/readyz")).status == 503 and a, "not ready")
    assert answer.json()["reasons"] == ["no worker takes jobs"]


def test_services_workers_connectors(module_web: Web) -> None:
    services = {each["name"]: each for each in module_web.get("/v1/services")["services"]}
    assert services["echo"]["broker"]["waiting"] == 3
    assert [each["name"] for each in module_web.get("/v1/workers")["workers"]] == ["gpu0"]
    connectors = module_web.get("/v1/connectors")["connectors"]
    assert connectors
    assert all("api_config" not in each for each in connectors)


# --- rendering -------------------------------------------------------------------------------------------------------

packable = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4) | st.integers(-9, 9) | st.binary(max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(packable)
def test_any_msgpack_value_is_json(value: object) -> None:
    assert json.loads(render.dumps(render.packed(msgspec.msgpack.encode(value)))) is not Ellipsis


@given(st.binary(max_size=60))
def test_any_bytes_are_json(data: bytes) -> None:
    json.loads(render.dumps(render.packed(data)))


def test_values_that_json_has_come_through_unchanged() -> None:
    value = {"a": [1, -2.5, None, True, "é"], "b": {"c": {}}}
    assert render.packed(msgspec.msgpack.encode(value)) == value


def test_too_deep_is_shown_as_base64() -> None:
    data = b"\x91" * 200 + b"\xc0"
    assert set(render.packed(data)) == {"$base64"}


@given(st.integers(-(1 << 63), 1 << 70))
def test_any_time_is_text_or_none(wall_ns: int) -> None:
    shown = render.time_of(wall_ns)
    assert shown is None or shown.endswith("Z")


def test_log_tails_are_bounded() -> None:
    logs = JobLogs(bytes_max=1_000, jobs_max=3, total_bytes_max=2_500)
    for number in range(10):
        for line in range(50):
            logs.add(JobLog(number, 1, 1, f"{line:036}"))
    assert len(logs) <= 3
    assert logs.size_bytes <= 2_500
    lines, dropped = logs.tail(9)
    assert lines[-1].text == f"{49:036}"
    assert (len(lines), dropped) == (10, 40)
