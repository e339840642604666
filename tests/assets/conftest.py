"""One Azurite for each module that asks for it, and places on either store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from assets_places import Place

from tests.azurite import Azurite


@pytest.fixture(scope="module")
def azurite() -> Iterator[Azurite]:
    with Azurite() as running:
        yield running


@pytest.fixture(params=["local", "azure"])
def place(request: pytest.FixtureRequest, tmp_path: Path, azurite: Azurite) -> Place:
    return Place(request.param, tmp_path / "assets", azurite)

    return Place("local", tmp_path / "assets", azurite)
