"""Journals in directories of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from empd.store.journal import SqliteJournal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def open_journal(path: Path) -> Iterator[Callable[..., SqliteJournal]]:
    """Opens the journal at `path`; all are closed at the end."""
    opened: list[SqliteJournal] = []

    def opener(**options: object) -> SqliteJournal:
        settings = {"durability": "os", "reserve_bytes": 0, **options}
        opened.append(SqliteJournal.open(path, **settings))  # type: ignore[arg-type]
        return opened[-1]

    yield opener
    for journal in opened:
        journal.close()
