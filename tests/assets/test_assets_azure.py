"""What only Azure has: credentials, error codes, broken connections, content types, a CDN in front."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from aiohttp import web
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from empd.asset import AssetConfig, AssetContent, AssetFailed, AssetRef
from empd.assets import azure, cdn
from empd.assets.naming import Mark
from empd.assets.saver import Saver
from empd.errors import FailureClass
from tests.azurite import ACCOUNT, KEY, Azurite

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
LARGE = os.urandom(1 << 20) * (4 * azure.BLOCK_BYTES >> 20) + b"end"
UPLOAD_BYTES_MAX = (azure.BLOCKS_AT_ONCE + 1) * azure.BLOCK_BYTES
MARK = Mark("0123456789abcdef0123456789abcdef", 7 << 32 | 1, 3)
T = TypeVar("T")


async def saved(config: dict[str, Any], *contents: AssetContent, check: bool = True) -> list[AssetRef]:
    """References to these contents, saved by one attempt."""
    saver = Saver(AssetConfig(**config), Path(), 0)
    try:
        if check:
            await saver.open()
        else:
            await saver.store.open()
            saver._opened = True  # the check would meet the same error first
        assets = saver.bind(MARK, None)
        return [await assets.save(content, output=index) for index, content in enumerate(contents)]
    finally:
        await saver.close()


async def traced(work: Awaitable[T]) -> tuple[T, int]:
    """Its result, and the most memory that Python held for it at once."""
    tracemalloc.start()
    try:
        return await work, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@contextlib.asynccontextmanager
async def served(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """The URL of a server on which `handler` answers everything."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


# --- credentials -----------------------------------------------------------------------------------------------------


def test_a_key_a_signature_and_a_connection_string_let_in(azurite: Azurite) -> None:
    entry = azurite.store("credentials")
    rights = ContainerSasPermissions(read=True, write=True, delete=True, list=True, create=True)
    until = datetime.now(UTC) + timedelta(hours=1)
    sas = generate_container_sas(ACCOUNT, "credentials", account_key=KEY, permission=rights, expiry=until)
    bare = {"provider": "azure", "container": "credentials", "account_url": azurite.url}
    for config in (entry, {**bare, "key": KEY}, {**bare, "sas": sas}):
        refs = asyncio.run(saved(config, PNG, LARGE))
        assert [azurite.read("credentials", ref.name) for ref in refs] == [PNG, LARGE]
        assert not any("sig=" in (ref.url or "") for ref in refs)


def test_without_credentials_the_machines_identity_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.query["resource"], request.headers["X-IDENTITY-HEADER"]))
        token = {"access_token": "t", "expires_on": "4102444800", "resource": "r", "token_type": "Bearer"}
        return web.json_response(token)

    async def run() -> None:
        async with served(answer) as url:
            monkeypatch.setenv("IDENTITY_ENDPOINT", f"{url}/token")
            monkeypatch.setenv("IDENTITY_HEADER", "proof")
            # Tokens travel by TLS only, which this server does not speak.
            config = {"provider": "azure", "container": "c", "account_url": url.replace("http", "https"), "retries": 0}
            await saved(config, PNG)

    with pytest.raises(AssetFailed, match="cannot be reached") as caught:
        asyncio.run(run())
    assert asked == [("https://storage.azure.com", "proof")]
    assert caught.value.upstream


def test_a_wrong_key_and_a_missing_container_are_told_with_the_services_words(azurite: Azurite) -> None:
    bare = {"provider": "azure", "account_url": azurite.url}
    wrong = KEY[:-10] + "AAAAAAAA=="
    azurite.store("credentials")
    with pytest.raises(AssetFailed, match=r"403 AuthorizationFailure \(x-ms-request-id [0-9a-f-]+\)") as caught:
        asyncio.run(saved({**bare, "container": "credentials", "key": wrong}, PNG))
    assert (caught.value.failure, caught.value.upstream, caught.value.retry) == (FailureClass.AUTH, True, True)
    assert wrong not in caught.value.message
    with pytest.raises(AssetFailed, match="404 ContainerNotFound") as caught:
        asyncio.run(saved({**bare, "container": "missing", "key": KEY}, PNG))
    assert (caught.value.failure, caught.value.upstream) == (FailureClass.NOT_FOUND, True)


def test_a_broken_connection_string_is_told_without_its_secret() -> None:
    config = {"provider": "azure", "container": "c", "connection_string": "AccountKey=verysecret;nonsense"}
    with pytest.raises(AssetFailed, match="is not usable") as caught:
        asyncio.run(saved(config, PNG))
    assert "verysecret" not in str(caught.value)


# --- errors ----------------------------------------------------------------------------------------------------------

BARE = {"provider": "azure", "container": "c", "account": "a", "key": KEY, "retries": 0}
CODES = [
    (503, "ServerBusy", FailureClass.UNAVAILABLE, True),
    (500, "OperationTimedOut", FailureClass.TIMEOUT, True),
    (500, "InternalError", FailureClass.UNAVAILABLE, True),
    (403, "AuthenticationFailed", FailureClass.AUTH, True),
    (403, "AuthorizationPermissionMismatch", FailureClass.AUTH, True),
    (403, "AuthorizationFailure", FailureClass.AUTH, True),
    (409, "PublicAccessNotPermitted", FailureClass.AUTH, True),
    (409, "ContainerBeingDeleted", FailureClass.UNAVAILABLE, True),
    (404, "ContainerNotFound", FailureClass.NOT_FOUND, True),
    (429, "", FailureClass.RATE_LIMITED, True),
    (400, "InvalidMetadata", FailureClass.INVALID_INPUT, False),
    (413, "RequestBodyTooLarge", FailureClass.INVALID_INPUT, False),
    (400, "InvalidHeaderValue", FailureClass.BAD_RESPONSE, True),
]


@pytest.mark.parametrize(("status", "code", "failure", "retry"), CODES)
def test_each_error_code_has_its_class(status: int, code: str, failure: FailureClass, retry: bool) -> None:
    async def answer(request: web.Request) -> web.Response:
        headers = {"x-ms-request-id": "abc", **({"x-ms-error-code": code} if code else {})}
        return web.Response(status=status, headers=headers)

    async def run() -> None:
        async with served(answer) as url:
            await saved({**BARE, "account_url": url}, PNG, check=False)

    with pytest.raises(AssetFailed, match=f"{status} {code}.*x-ms-request-id abc") as caught:
        asyncio.run(run())
    error = caught.value
    assert (error.failure, error.retry, error.upstream) == (failure, retry, retry)


def test_a_store_that_cannot_be_reached_is_unavailable() -> None:
    with pytest.raises(AssetFailed, match="cannot be reached") as caught:
        asyncio.run(saved({**BARE, "account_url": "http://127.0.0.1:1"}, PNG))
    assert (caught.value.failure, caught.value.upstream) == (FailureClass.UNAVAILABLE, True)


class Cutter:
    """Passes bytes on to a server, and cuts the first `cuts` connections after `after` bytes."""

    def __init__(self, port: int, cuts: int, after: int) -> None:
        self._port = port
        self._after = after
        self.left = cuts

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)

        async def back() -> None:
            while data := await there_reader.read(65536):
                writer.write(data)
                await writer.drain()

        answering = asyncio.create_task(back())
        passed = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                passed += len(data)
                if passed > self._after and self.left:
                    self.left -= 1
                    break
                there_writer.write(data)
                await there_writer.drain()
        answering.cancel()
        there_writer.transport.abort()
        writer.transport.abort()


async def through(cutter: Cutter, config: dict[str, Any], content: bytes) -> list[AssetRef]:
    server = await asyncio.start_server(cutter, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await saved({**config, "account_url": f"http://127.0.0.1:{port}/{ACCOUNT}", "key": KEY}, content)


def test_an_upload_that_is_cut_is_taken_up_again_and_there_once(azurite: Azurite) -> None:
    azurite.store("cut")
    cutter = Cutter(azurite.port, 3, azure.BLOCK_BYTES // 2)
    config = {"provider": "azure", "container": "cut", "retries": 8}
    [ref], peak_bytes = asyncio.run(traced(through(cutter, config, LARGE)))
    assert cutter.left == 0
    assert peak_bytes < UPLOAD_BYTES_MAX
    assert set(azurite.blobs("cut")) == {ref.name}
    assert azurite.read("cut", ref.name) == LARGE


def test_an_upload_that_is_always_cut_fails_and_leaves_nothing(azurite: Azurite) -> None:
    azurite.store("always-cut")
    cutter = Cutter(azurite.port, 1_000, azure.BLOCK_BYTES // 2)
    config = {"provider": "azure", "container": "always-cut", "retries": 0}
    with pytest.raises(AssetFailed) as caught:
        asyncio.run(through(cutter, config, LARGE))
    assert (caught.value.failure, caught.value.upstream) == (FailureClass.UNAVAILABLE, True)
    assert azurite.blobs("always-cut") == {}


# --- many blocks -----------------------------------------------------------------------------------------------------


def test_a_large_file_takes_the_memory_of_a_few_blocks(azurite: Azurite, tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(3 * azure.BLOCKS_AT_ONCE * azure.BLOCK_BYTES)
    _, peak_bytes = asyncio.run(traced(saved(azurite.store("memory"), path)))
    assert peak_bytes < UPLOAD_BYTES_MAX < 64 << 20


def test_many_files_at_once_take_no_more(azurite: Azurite, tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(3 * azure.BLOCK_BYTES)

    async def at_once() -> set[int]:
        saver = Saver(AssetConfig(**azurite.store("many")), Path(), 0)
        try:
            jobs = [saver.bind(MARK._replace(job_id=number), None) for number in range(6)]
            return {ref.size_bytes for ref in await asyncio.gather(*(job.save(path) for job in jobs))}
        finally:
            await saver.close()

    sizes, peak_bytes = asyncio.run(traced(at_once()))
    assert sizes == {3 * azure.BLOCK_BYTES}
    assert peak_bytes < 64 << 20


def test_each_block_lies_where_it_belongs(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure, "BLOCK_BYTES", 300_000)
    monkeypatch.setattr(azure, "_PIECE_BYTES", 70_000)
    contents = [os.urandom(300_000 * blocks + rest) for blocks, rest in ((2 * azure.BLOCKS_AT_ONCE, 7), (7, 0), (1, 0))]
    refs = asyncio.run(saved(azurite.store("blocks"), *contents))
    assert [azurite.read("blocks", ref.name) for ref in refs] == contents


# --- what is told of a blob ------------------------------------------------------------------------------------------


def test_type_hash_and_owner_stand_at_the_blob(azurite: Azurite) -> None:
    refs = asyncio.run(saved(azurite.store("told"), PNG, LARGE))
    with azurite.client() as client:
        for ref, kind in zip(refs, ("image/png", "application/octet-stream"), strict=True):
            found = client.get_blob_client("told", ref.name).get_blob_properties()
            assert found.content_settings.content_type == kind == ref.media_type
            assert "immutable" in found.content_settings.cache_control
            assert found.metadata["empd_epoch"] == "3"
            assert found.metadata["empd_sha256"] == ref.sha256
            assert ref.url == client.get_blob_client("told", ref.name).url


# --- CDN -------------------------------------------------------------------------------------------------------------


def test_a_result_waits_until_the_cdn_shows_the_asset(azurite: Azurite) -> None:
    asked: list[tuple[str, str, str | None]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.method, request.path, request.headers.get("Accept-Encoding")))
        if len(asked) < 3:
            return web.Response(status=404)
        return web.Response(headers={"Content-Length": str(len(PNG) + (len(asked) == 3))})

    async def run() -> AssetRef:
        async with served(answer) as url:
            cdn = {"cdn_url": f"{url}/files/", "cdn_check": True, "cdn_interval_s": 0}
            [ref] = await saved({**azurite.store("cdn"), **cdn}, PNG)
            assert ref.cdn_url == f"{url}/files/{ref.name}"
            return ref

    ref = asyncio.run(run())
    assert asked == [("HEAD", f"/files/{ref.name}", "identity")] * 4


def test_a_cdn_that_never_shows_it_fails_the_attempt_after_so_many_questions(azurite: Azurite) -> None:
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=404)

    async def run() -> None:
        async with served(answer) as url:
            cdn = {"cdn_url": url, "cdn_check": True, "cdn_interval_s": 0, "cdn_attempts": 5}
            await saved({**azurite.store("cdn"), **cdn}, PNG)

    with pytest.raises(AssetFailed, match="in 5 attempts: status 404") as caught:
        asyncio.run(run())
    assert len(asked) == 5
    assert caught.value.upstream


def test_a_cdn_is_asked_less_and_less_often_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def run() -> None:
        network = cdn.Cdn(12, 2.0)
        monkeypatch.setattr(network, "_look", look)
        try:
            await network.wait_until_shown("https://cdn.example.org/a", 1)
        finally:
            await network.close()

    async def look(url: str, size_bytes: int) -> str:
        return "status 404"

    monkeypatch.setattr(cdn, "asyncio", SimpleNamespace(sleep=sleep))
    with pytest.raises(AssetFailed, match="in 12 attempts"):
        asyncio.run(run())
    assert len(waits) == 11
    assert waits[0] == 2.0
    assert waits == sorted(waits)
    assert waits[1] > waits[0]
    assert waits[-1] == waits[-2] == 2.0 * cdn.BACKOFF_MAX


def test_without_a_check_the_cdn_is_only_named(azurite: Azurite) -> None:
    config = {**azurite.store("cdn"), "cdn_url": "https://cdn.example.org/x"}
    [ref] = asyncio.run(saved(config, PNG))
    assert ref.cdn_url == f"https://cdn.example.org/x/{ref.name}"
