"""Azure by the machine's identity: tokens of the endpoint that an instance or App Service has, at a store that looks at
them.

The store is Azurite with TLS and `--oauth basic`: it takes a token whose lifetime, issuer and audience are right, and
looks neither at its signature nor at roles.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from typing import Any

import aiohttp.connector
import pytest

from empd.asset import AssetConfig, AssetFailed
from empd.assets.content import BLOCK_BYTES
from empd.assets.naming import Mark
from empd.assets.saver import Saver
from empd.errors import FailureClass
from tests.azurite import Azurite
from tests.box import Box, mapping_of, service
from tests.doubles.identity import APP_SERVICE_PATH, HEADER, TokenEndpoint

PNG = b"\x89PNG\r\n\x1a\n" + b"picture"
LARGE = b"\x89PNG\r\n\x1a\n" + bytes(BLOCK_BYTES)


@pytest.fixture(scope="module")
def store() -> Iterator[Azurite]:
    with Azurite(oauth=True) as running:
        running.store("identity")
        yield running


@pytest.fixture
def endpoint(store: Azurite, monkeypatch: pytest.MonkeyPatch) -> Iterator[TokenEndpoint]:
    """An instance's endpoint, and trust in the store's certificate."""
    with TokenEndpoint() as running:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", running.url)
        # What SSL_CERT_FILE does in a process that begins with it.
        trusted = ssl.create_default_context(cafile=str(store.ca_file))
        monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", trusted)
        yield running


def entry(store: Azurite) -> dict[str, Any]:
    """No credentials in it."""
    return {"provider": "azure", "container": "identity", "account_url": store.url, "retries": 0}


def saver(store: Azurite) -> Saver:
    return Saver(AssetConfig(**entry(store)), store.folder / "unused", 0)


def refused(store: Azurite) -> AssetFailed:
    async def run() -> None:
        each = saver(store)
        try:
            await each.bind(Mark("ab" * 16, 9, 1), None).save(PNG)
        finally:
            await each.close()

    with pytest.raises(AssetFailed) as caught:
        asyncio.run(run())
    return caught.value


@pytest.mark.parametrize("kind", ["instance", "app service"])
def test_everything_is_done_by_the_machines_identity(
    store: Azurite, endpoint: TokenEndpoint, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "app service":
        monkeypatch.delenv("AZURE_POD_IDENTITY_AUTHORITY_HOST")
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{endpoint.url}{APP_SERVICE_PATH}")
        monkeypatch.setenv("IDENTITY_HEADER", HEADER)

    async def run() -> None:
        each = saver(store)
        first, second = (each.bind(Mark("ab" * 16, 7, epoch), None) for epoch in (1, 2))
        small, lost = await first.save(PNG), await first.save(b"lost", output=1)
        large = await second.save(LARGE, output=2)  # in blocks, then copied to its name
        again = await second.save(PNG)  # replaces what the first saved
        assert again.name == small.name
        assert await second.settle() == 1
        assert await first.discard() == 0
        assert set(store.blobs("identity")) == {small.name, large.name}
        assert [store.read("identity", ref.name) for ref in (small, large)] == [PNG, LARGE]
        assert lost.name not in store.blobs("identity")
        assert await second.discard() == 2
        await each.check()
        await each.close()

    asyncio.run(run())
    assert len(endpoint.given) == 1  # one token for all of it
    assert endpoint.wrong == []
    assert store.blobs("identity") == {}


def test_a_token_that_ends_is_followed_by_another(store: Azurite, endpoint: TokenEndpoint) -> None:
    endpoint.lifetime_s = 2.0

    async def run() -> None:
        each = saver(store)
        assets = each.bind(Mark("ab" * 16, 8, 1), None)
        await assets.save(PNG)
        endpoint.lifetime_s = 3600.0  # of the next one
        async with asyncio.timeout(30):
            while len(endpoint.given) < 2:
                # Others are renewed minutes before their end; this one may end while a question is on its way.
                with contextlib.suppress(AssetFailed):
                    await each.check()
                await asyncio.sleep(0.05)
        await each.check()
        await assets.save(PNG, output=1)
        assert await assets.discard() == 2
        await each.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "https://vault.azure.net"},
        {"iss": "https://elsewhere.example/"},
        {"nbf": 1, "exp": 2},
        {"aud": "https://another.blob.core.windows.net"},
    ],
)
def test_a_token_that_the_store_does_not_take_is_a_matter_of_rights(
    store: Azurite, endpoint: TokenEndpoint, claims: dict[str, Any]
) -> None:
    endpoint.claims = claims
    error = refused(store)
    assert (error.failure, error.upstream, error.retry) == (FailureClass.AUTH, True, True)
    assert endpoint.given[0] not in error.message


@pytest.mark.parametrize("status", [400, 403])
def test_a_machine_without_an_identity_is_a_matter_of_rights(
    store: Azurite, endpoint: TokenEndpoint, status: int
) -> None:
    endpoint.refusal = (status, {"error": "invalid_request", "error_description": "Identity not found"})
    error = refused(store)
    assert (error.failure, error.upstream) == (FailureClass.AUTH, True)
    assert "no credentials" in error.message
    assert "Identity not found" in error.message
    assert "PowerShell" not in error.message


def test_a_whole_daemon_saves_by_the_machines_identity(
    store: Azurite, endpoint: TokenEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(store.ca_file))
    mapping = mapping_of(s=service("PythonConnector", api_config={"callable": "files:pictures"}))
    mapping["assets"] = {"default": entry(store)}
    with Box(mapping) as daemon, daemon.client() as client:
        handle = client.submit("s", {"count": 2})
        refs = handle.result(60)["files"]
        assert {store.read("identity", ref["name"])[-7:] for ref in refs} == {b"final-0", b"final-1"}
        log = daemon.log()
    assert endpoint.given
    assert not any(token in log for token in endpoint.given)
