"""How every SQLite file of the state directory is opened: read-only inspection first, then pragmas, then migrations.

Schemas only go forward: `<name>_1.sql`, `<name>_2.sql`, … each lift the file by one version in one transaction.
The version is SQLite's `user_version`; `application_id` says which of empd's files it is.
"""

from __future__ import annotations

import importlib.resources
import sqlite3
from pathlib import Path
from typing import NamedTuple


class Inspection(NamedTuple):
    """What a file says of itself. `fresh` files hold nothing yet: absent, empty, or cut off while being made."""

    fresh: bool
    application_id: int
    version: int


def inspect(path: Path) -> Inspection:
    """Reads a database's identity without writing a byte of it. Raises sqlite3.Error when it is not readable."""
    if not path.exists() or path.stat().st_size == 0:
        return Inspection(True, 0, 0)
    connection = connect_read_only(path)
    try:
        application_id = int(connection.execute("PRAGMA application_id").fetchone()[0])
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        tables = int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    except UnicodeDecodeError as error:
        # SQLite quotes what it cannot read, and Python cannot read the quotation.
        raise sqlite3.DatabaseError(f"malformed database schema: {error}") from None
    finally:
        connection.close()
    return Inspection(tables == 0 and version == 0, application_id, version)


def connect_read_only(path: Path) -> sqlite3.Connection:
    """A connection that cannot write; works beside a living writer."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


def connect(path: Path, pragmas: dict[str, str], *, any_thread: bool = False) -> sqlite3.Connection:
    """A writing connection with these pragmas set. Transactions are begun and ended by hand.

    `any_thread`: the caller sees to it that only one thread at a time uses it.
    """
    connection = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=not any_thread)
    try:
        for name, value in pragmas.items():
            connection.execute(f"PRAGMA {name}={value}").fetchall()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def migrate(connection: sqlite3.Connection, name: str, application_id: int, current: int, wanted: int) -> None:
    """Lifts the schema from `current` to `wanted`, one transaction for each step."""
    for version in range(current + 1, wanted + 1):
        script = importlib.resources.files("empd.store").joinpath(f"{name}_{version}.sql").read_text()
        identity = f"PRAGMA application_id={application_id};\nPRAGMA user_version={version};"
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\n{identity}\nCOMMIT;")
