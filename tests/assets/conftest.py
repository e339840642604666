"""One Azurite for each module that asks for it, and places on either store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from assets_places import Place

from empd.assets.content import BLOCK_BYTES
from tests.azurite import Azurite


@pytest.fixture(scope="module")
def azurite() -> Iterator[Azurite]:
    with Azurite() as running:
        yield running


@pytest.fixture(params=["local", "azure"])
def place(request: pytest.FixtureRequest, tmp_path: Path, azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> Place:
    # The same contents are of one block, or of several, in both stores.
    monkeypatch.setattr("empd.assets.azure.BLOCK_BYTES", BLOCK_BYTES)
    return Place(request.param, tmp_path / "assets", azurite)
