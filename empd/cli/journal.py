"""`empd journal`: verify and export, on the file itself, whether or not the daemon runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from empd.cli import options, output
from empd.cli.codes import ExitCode
from empd.cli.commands import Suggesting
from empd.cli.run import settings_from
from empd.queue.rows import Kind, decode_body
from empd.store import audit

_path = click.argument("path", type=click.Path(path_type=Path), required=False)


@click.group(cls=Suggesting)
def journal() -> None:
    """Verify or export the journal. PATH is a journal.db; left out, that of the configured state directory."""


def _found(path: Path | None) -> Path:
    if path is None:
        return settings_from({}).journal_path
    return path / "journal.db" if path.is_dir() else path


def _kind(number: int) -> str:
    return Kind(number).name.lower() if number in set(Kind) else str(number)


@journal.command()
@_path
@options.as_json
def verify(path: Path | None, json_output: bool) -> int:
    """Check structure, checksums, the gapless order of rows and the mark."""
    path = _found(path)
    found = audit.verify(path)
    kinds = {_kind(kind): count for kind, count in sorted(found.kinds.items())}
    if json_output:
        output.print_json({"ok": not found.problems, "path": str(path), **found._asdict(), "kinds": kinds})
    else:
        print(f"{path}: {found.rows} rows ({found.first_seq}…{found.last_seq}), {output.size(found.body_bytes)}")
        for problem in found.problems:
            print(problem)
        if not found.problems:
            print("ok: every row is whole, none is missing")
    return ExitCode.FAILED if found.problems else ExitCode.OK


@journal.command()
@_path
@click.option("--raw", is_flag=True, help="Bodies as hex instead of decoded.")
def export(path: Path | None, raw: bool) -> None:
    """Print every whole row as a line of JSON, oldest first."""
    for row in audit.export(_found(path)):
        line: dict[str, Any] = {"seq": row.seq, "at": output.time_text(row.at_ns), "kind": _kind(row.kind)}
        line |= {"origin": row.origin, "body": row.body.hex() if raw else _decoded(row.kind, row.body)}
        print(json.dumps(line, ensure_ascii=False))


def _decoded(kind: int, body: bytes) -> Any:
    import msgspec

    def encode(value: Any) -> Any:
        if isinstance(value, msgspec.Raw):
            return msgspec.msgpack.decode(value)
        return value.hex() if isinstance(value, bytes) else str(value)

    try:
        return msgspec.to_builtins(_named(decode_body(kind, body)), enc_hook=encode)
    except ValueError:
        return {"undecoded": body.hex()}


def _named(value: Any) -> Any:
    """Records as maps with field names: arrays are for the wire."""
    import msgspec

    if isinstance(value, msgspec.Struct):
        return {name: _named(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, msgspec.Raw):
        return msgspec.msgpack.decode(value)
    return [_named(item) for item in value] if isinstance(value, list) else value
