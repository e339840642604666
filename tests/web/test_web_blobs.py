"""Blobs over HTTP: upload, ranges, ETags, bounds; and the parsing of ranges."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from web_broker import BrokerDouble
from web_harness import Web, wait_for

from empd.job import parse_id
from empd.payload import BlobRef
from empd.web.blobs import Span, Unsatisfiable, parse_range

CONTENT = os.urandom(3 << 20)


def upload(web: Web, content: bytes = CONTENT, **headers: str) -> dict[str, object]:
    answer = web.ask("POST", "/v1/blobs", content, **headers)
    assert answer.status == 201, answer.body
    body: dict[str, object] = answer.json()
    return body


def test_upload_and_download_are_the_same_bytes(module_web: Web) -> None:
    blob = upload(module_web)
    assert blob["size"] == len(CONTENT)
    answer = module_web.ask("GET", str(blob["url"]))
    assert (answer.status, answer.body) == (200, CONTENT)
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("header", "span"),
    [("bytes=0-99", (0, 100)), ("bytes=100-", (100, 3 << 20)), ("bytes=-7", ((3 << 20) - 7, 3 << 20))],
)
def test_ranges(module_web: Web, header: str, span: tuple[int, int]) -> None:
    blob = upload(module_web)
    answer = module_web.ask("GET", str(blob["url"]), Range=header)
    assert (answer.status, answer.body) == (206, CONTENT[slice(*span)])
    assert answer.headers["Content-Range"] == f"bytes {span[0]}-{span[1] - 1}/{len(CONTENT)}"


def test_etag_conditions(module_web: Web) -> None:
    blob = upload(module_web, b"abc")
    etag = module_web.ask("GET", str(blob["url"])).headers["ETag"]
    unchanged = module_web.ask("GET", str(blob["url"]), If_None_Match=etag)
    assert (unchanged.status, unchanged.body) == (304, b"")
    assert module_web.ask("GET", str(blob["url"]), Range="bytes=0-0", If_Range=etag).body == b"a"
    assert module_web.ask("GET", str(blob["url"]), Range="bytes=0-0", If_Range='"other"').body == b"abc"
    past = module_web.ask("GET", str(blob["url"]), Range="bytes=3-")
    assert (past.status, past.headers["Content-Range"]) == (416, "bytes */3")
    head = module_web.ask("HEAD", str(blob["url"]))
    assert (head.status, head.headers["Content-Length"], head.body) == (200, "3", b"")


def test_empty_blob(module_web: Web) -> None:
    blob = upload(module_web, b"")
    assert module_web.ask("GET", str(blob["url"])).body == b""


def test_blob_is_a_payload(web: Web, broker: BrokerDouble) -> None:
    blob = upload(web, b'{"a": 1}', Content_Type="application/json")
    name = web.ask("POST", "/v1/jobs", {"service": "hold", "payload": {"blob": blob["blob"]}}).json()["id"]
    ref = broker.payloads[parse_id(name)]
    assert isinstance(ref, BlobRef)
    assert (ref.id, ref.size, ref.encoding) == (blob["blob"], 8, "json")


def test_large_payloads_go_through_the_arena(web: Web, broker: BrokerDouble) -> None:
    name = web.ask("POST", "/v1/jobs", {"service": "hold", "payload": "x" * 200_000}).json()["id"]
    assert isinstance(broker.payloads[parse_id(name)], BlobRef)


def test_blob_is_found_by_a_new_process(web: Web) -> None:
    blob = upload(web)
    web.restart()
    assert web.ask("GET", str(blob["url"])).body == CONTENT


def test_result_blob_is_served_with_ranges(web: Web, broker: BrokerDouble) -> None:
    blob = upload(web)
    name = web.ask("POST", "/v1/jobs", {"service": "hold"}).json()["id"]
    ref = BlobRef(str(blob["blob"]), len(CONTENT), int(str(blob["crc32"])))
    broker.finish(parse_id(name), result=ref)
    assert web.get(f"/v1/jobs/{name}")["result"]["url"] == blob["url"]
    assert web.ask("GET", f"/v1/jobs/{name}/result", Range="bytes=5-9").body == CONTENT[5:10]


@pytest.mark.parametrize(("name", "status"), [("zz", 400), ("0" * 32, 404), ("0" * 31 + "G", 400)])
def test_no_such_blob(module_web: Web, name: str, status: int) -> None:
    assert module_web.ask("GET", f"/v1/blobs/{name}").status == status


def test_uploads_are_bounded(broker: BrokerDouble, start_web: Callable[..., Web]) -> None:
    web = start_web(spool_bytes_max=100_000)
    assert web.ask("POST", "/v1/blobs", b"x" * 200_000).status == 507
    upload(web, b"x" * 60_000)
    answer = web.ask("POST", "/v1/blobs", b"x" * 60_000)
    assert (answer.status, "spool_bytes_max" in answer.json()["detail"]) == (507, True)


def test_uploads_leave_room_on_the_disk(broker: BrokerDouble, start_web: Callable[..., Web]) -> None:
    web = start_web(disk_free_min_bytes=1 << 60)
    assert web.ask("POST", "/v1/blobs", b"x").status == 507
    assert any("disk" in reason for reason in web.get("/v1/status")["reasons"])


def test_an_upload_that_breaks_off_leaves_nothing(web: Web) -> None:
    host, _, port = web.address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        head = b"POST /v1/blobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n\r\n"
        connection.sendall(head + b"x" * 2_000_000)
    spool = web.state_dir / "spool"
    wait_for(lambda: not [path for path in spool.rglob("*") if path.is_file()], "no file in the spool")


# --- parsing ---------------------------------------------------------------------------------------------------------


@given(st.text(max_size=40), st.integers(0, 10_000))
def test_any_header_is_a_span_nothing_or_unsatisfiable(header: str, size: int) -> None:
    try:
        span = parse_range(header, size)
    except Unsatisfiable:
        return
    assert span is None or 0 <= span.start < span.end <= size


@given(st.integers(0, 10**18 - 2), st.integers(0, 10**18 - 2) | st.none(), st.integers(0, 10_000))
def test_first_and_last(first: int, last: int | None, size: int) -> None:
    header = f"bytes={first}-{'' if last is None else last}"
    if last is not None and last < first:
        assert parse_range(header, size) is None
    elif first >= size:
        with pytest.raises(Unsatisfiable):
            parse_range(header, size)
    else:
        assert parse_range(header, size) == Span(first, size if last is None else min(last + 1, size))


@given(st.integers(0, 20_000), st.integers(0, 10_000))
def test_suffix(count: int, size: int) -> None:
    if count == 0 or size == 0:
        with pytest.raises(Unsatisfiable):
            parse_range(f"bytes=-{count}", size)
    else:
        assert parse_range(f"bytes=-{count}", size) == Span(max(0, size - count), size)


@pytest.mark.parametrize(
    "header", [None, "", "bytes", "bytes=-", "items=0-1", "bytes=0-1,3-4", "bytes=a-b", "bytes=٣-"]
)
def test_what_is_no_single_range_is_passed_over(header: str | None) -> None:
    assert parse_range(header, 10) is None
