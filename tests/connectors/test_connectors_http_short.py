"""The short way of a request: the same on the wire as aiohttp's own, and as careful with what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from empd.connectors.failures import ConnectorError
from empd.connectors.protocol.auth import ApiKeyAuth
from empd.connectors.protocol.http_config import HTTPConfig
from empd.connectors.protocol.http_session import HTTPSession, Outgoing
from empd.connectors.protocol.http_short import BODY_BYTES_MAX, Answer, ShortWay, is_tried

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\ndone"
LINE_END = b"\r\n"


class Peer:
    """A server that answers each request with what `answers` says (the last one again and again), bytes for bytes.

    `None` closes the connection instead.
    """

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.open = 0
        self.asked = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while head := await reader.readuntil(2 * LINE_END):
                length = [line for line in head.lower().split(LINE_END) if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
                self.requests.append(head + body)
                self.asked.set()
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if answer is None:
                    return
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.open -= 1
            writer.close()


@contextlib.asynccontextmanager
async def session_to(
    peer: Peer, tls: ssl.SSLContext | None = None, **config: Any
) -> AsyncIterator[tuple[HTTPSession, str]]:
    """A session, and the peer's address."""
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0, ssl=tls)
    session = HTTPSession(HTTPConfig(**config), 4, lambda secrets: None)
    try:
        async with asyncio.timeout(60):
            yield session, f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        await session.close()
        server.close()


def request(url: str, method: str = "POST", body: Any = b"{}", **headers: str) -> Outgoing:
    return Outgoing(method, url, {name.replace("_", "-"): value for name, value in headers.items()}, body, None, None)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def run(test: Any, *answers: bytes | None, **config: Any) -> Peer:
    async def inside() -> Peer:
        peer = Peer(*answers)
        async with session_to(peer, **config) as (session, url):
            await test(session, url, peer)
        return peer

    return asyncio.run(inside())


SHAPES = {
    "json": lambda url: request(f"{url}/a/b%20c", Accept="application/json", Content_Type="application/json"),
    "bytes": lambda url: request(f"{url}/ü", body=b"\x00\xff"),
    "empty": lambda url: request(url, body=b""),
    "nothing": lambda url: request(url, body=None),
    "get": lambda url: request(f"{url}/x?y=1&z=%2F#part", "GET", None),
    "get_with_body": lambda url: request(url, "GET", b"search"),
    "put": lambda url: request(url, "PUT", b"1"),
    "delete": lambda url: request(url, "DELETE", None),
    "own_names": lambda url: request(url, user_agent="mine/1", host="elsewhere", X_Key="ä; 7"),
    "twice": lambda url: request(url, Accept="text/html", accept="text/plain"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_service_sees_what_aiohttp_would_have_sent(shape: str) -> None:
    async def both(session: HTTPSession, url: str, peer: Peer) -> None:
        outgoing = SHAPES[shape](url)
        answer = await session.send(outgoing)
        assert isinstance(answer, Answer)
        assert await answer.read() == b"done"
        long = session.aiohttp.request(
            outgoing.method, outgoing.url, data=outgoing.body, headers=outgoing.headers, allow_redirects=False
        )
        async with long as known:
            assert (answer.status, dict(answer.headers)) == (known.status, dict(known.headers))
            assert answer.content_length == known.content_length == 4
            await known.read()

    peer = run(both, OK)
    short, known = (sorted(data.split(LINE_END)) for data in peer.requests)
    assert short == known
    assert peer.requests[0].split(LINE_END)[0] == peer.requests[1].split(LINE_END)[0]
    assert peer.connections == 1, "both ways share the pool"


LONG: dict[str, Callable[[str], Outgoing]] = {
    "query": lambda url: request(url)._replace(params={"a": "b"}),
    "time_out": lambda url: request(url)._replace(timeout=aiohttp.ClientTimeout(total=50)),
    "aside": lambda url: request(url)._replace(aside=True),
    "form": lambda url: request(url)._replace(body=lambda: b"made"),
    "large": lambda url: request(url, body=bytes(BODY_BYTES_MAX + 1)),
    "head": lambda url: request(url, "HEAD", None),
    "credentials": lambda url: request(url.replace("//", "//user:word@")),
    "framed": lambda url: request(url, Content_Encoding="gzip"),
}


@pytest.mark.parametrize("shape", LONG)
def test_a_request_that_wants_more_goes_the_long_way(shape: str) -> None:
    async def send(session: HTTPSession, url: str, peer: Peer) -> None:
        answer = await session.send(LONG[shape](url))
        assert isinstance(answer, aiohttp.ClientResponse)
        answer.close()

    run(send, b"HTTP/1.1 204 No Content\r\n\r\n")


@pytest.mark.parametrize("config", [{"total_timeout_s": 50.0}, {"auth": ApiKeyAuth(api_key="k", query="key")}])
def test_a_service_that_wants_more_goes_the_long_way(config: dict[str, Any]) -> None:
    async def send(session: HTTPSession, url: str, peer: Peer) -> None:
        answer = await session.send(request(url))
        assert isinstance(answer, aiohttp.ClientResponse)
        answer.close()

    run(send, OK, **config)


def test_who_traces_aiohttp_sees_the_request() -> None:
    async def send(session: HTTPSession, url: str, peer: Peer) -> None:
        seen: list[str] = []

        async def began(_: Any, __: Any, what: Any) -> None:
            seen.append(what.method)

        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(began)
        trace.freeze()
        session.aiohttp.trace_configs.append(trace)
        (await session.send(request(url))).close()
        assert seen == ["POST"]

    run(send, OK)


@pytest.mark.parametrize("value", ["a\r\nX-Other: b", "a\nb", "a\0b"])
def test_a_header_cannot_end_its_line(value: str) -> None:
    async def send(session: HTTPSession, url: str, peer: Peer) -> None:
        with pytest.raises(ValueError):
            await session.send(request(url, X_Key=value))

    assert run(send, OK).requests == []


def test_a_kept_connection_that_was_closed_is_not_the_callers_trouble_where_asking_twice_is_asking_once() -> None:
    async def send(session: HTTPSession, url: str, peer: Peer) -> None:
        for _ in range(2):
            assert await (await session.send(request(url, "GET", None))).read() == b"done"

    peer = run(send, OK, None, OK)
    assert (len(peer.requests), peer.connections) == (3, 2)


def test_what_may_have_been_done_is_sent_once() -> None:
    async def send(session: HTTPSession, url: str, peer: Peer) -> None:
        await (await session.send(request(url))).read()
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await session.send(request(url))

    assert len(run(send, OK, None, OK).requests) == 2


def test_a_service_that_only_hangs_up_is_asked_twice_at_most() -> None:
    async def send(session: HTTPSession, url: str, peer: Peer) -> None:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await session.send(request(url, "GET", None))

    assert len(run(send, None).requests) == 2


def test_news_before_the_answer_are_passed_over() -> None:
    async def send(session: HTTPSession, url: str, peer: Peer) -> None:
        for _ in range(2):
            answer = await session.send(request(url))
            assert (answer.status, await answer.read()) == (200, b"done")

    assert run(send, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK).connections == 1


def test_what_is_no_http_is_a_bad_answer_and_ends_the_connection() -> None:
    async def send(session: HTTPSession, url: str, peer: Peer) -> None:
        with pytest.raises(aiohttp.ClientPayloadError):
            await session.send(request(url))
        await until(lambda: not peer.open)

    run(send, b"SSH-2.0-OpenSSH\r\n\r\n")


def test_a_cancelled_request_leaves_no_connection_on_which_its_answer_may_come() -> None:
    async def send(session: HTTPSession, url: str, peer: Peer) -> None:
        asking = asyncio.create_task(session.send(request(url)))
        await peer.asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: not peer.open)

    run(send, b"")


def test_an_answer_left_in_the_middle_ends_the_connection_and_whoever_reads_it() -> None:
    async def send(session: HTTPSession, url: str, peer: Peer) -> None:
        for leave in (Answer.close, Answer.release):
            answer = await session.send(request(url))
            assert isinstance(answer, Answer)
            leave(answer)
            await until(lambda: not peer.open)
        answer = await session.send(request(url))
        reading = asyncio.create_task(answer.read())
        await asyncio.sleep(0)
        answer.close()
        with pytest.raises(aiohttp.ClientError):
            await reading

    run(send, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")


def test_a_silent_service_meets_the_read_time_out() -> None:
    async def send(session: HTTPSession, url: str, peer: Peer) -> None:
        with pytest.raises(aiohttp.SocketTimeoutError):
            await session.send(request(url))
        await until(lambda: not peer.open)

    run(send, b"", read_timeout_s=0.05)


def test_no_connection_in_time_is_said_as_aiohttp_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def send(session: HTTPSession, url: str, peer: Peer) -> None:
        async def late(*_: Any) -> None:
            raise TimeoutError

        monkeypatch.setattr(session.aiohttp.connector, "connect", late)
        with pytest.raises(aiohttp.ConnectionTimeoutError):
            await session.send(request(url))

    run(send, OK)


def test_heads_are_made_once_and_each_session_keeps_few(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    make = ShortWay._make
    monkeypatch.setattr(ShortWay, "_make", lambda self, *key: made.append(key[1]) or make(self, *key))

    async def send(session: HTTPSession, url: str, peer: Peer) -> None:
        for _ in range(3):
            await (await session.send(request(url))).read()

    run(send, OK)
    assert len(made) == 1


def test_tls_is_that_of_the_session(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=service"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)

    async def known(session: HTTPSession, url: str, peer: Peer) -> None:
        answer = await session.send(request(url))
        assert isinstance(answer, Answer)
        assert await answer.read() == b"done"

    async def unknown(session: HTTPSession, url: str, peer: Peer) -> None:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.send(request(url))

    assert len(run(known, OK, tls=tls, ca_file=str(certificate)).requests) == 1
    assert len(run(known, OK, tls=tls, verify_tls=False).requests) == 1
    assert run(unknown, OK, tls=tls).requests == []


def test_a_closed_session_says_so() -> None:
    async def send(session: HTTPSession, url: str, peer: Peer) -> None:
        await session.close()
        with pytest.raises((RuntimeError, ConnectorError)):
            await session.send(request(url))

    run(send, OK)


@pytest.mark.parametrize(
    ("version", "tried"),
    [("3.9.5", False), ("3.10.11", True), ("3.14.5", True), ("3.15.0", False), ("4.0.0", False), ("next", False)],
)
def test_a_release_of_aiohttp_that_nobody_has_tried_goes_the_long_way(
    version: str, tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_tried(version) is tried
    monkeypatch.setattr(aiohttp, "__version__", version)

    async def way() -> bool:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
            return ShortWay(session, "empd").head("GET", "http://127.0.0.1/", {}, None) is not None

    assert asyncio.run(way()) is tried


def test_the_installed_release_is_one_that_was_tried() -> None:
    assert is_tried(aiohttp.__version__), "try the short way with it, and say so in TRIED"
