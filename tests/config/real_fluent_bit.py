"""etc/fluent-bit.conf run by a real Fluent Bit: `make test-fluent-bit FLUENT_BIT=fluent-bit`.

Its inputs are replaced by standard input, which gives the same records as the journal, and its output by a file for
each tag; all between them is run as it stands.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from test_fluent_bit import ETC, JOURNAL, Local, written

from empd.connectors.protocol.grpc import GRPCConnector
from empd.connectors.protocol.http import HTTPConnector
from empd.connectors.protocol.stream import StreamConnector
from empd.connectors.protocol.websocket import WebSocketConnector

KINDS = {
    "empd.http": HTTPConnector,
    "empd.websocket": WebSocketConnector,
    "empd.stream": StreamConnector,
    "empd.grpc": GRPCConnector,
    "empd.local": Local,
    "empd.daemon": None,
}
TEXTS = ["plain words", "[1, 2]", '{"no": "event"}', "{broken", "\u00e4 \U0001f600", "x" * 20_000]


def run(records: list[dict[str, Any]], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What comes out, by tag. `date` is the record's time."""
    sections = re.split(r"(?m)^(?=\[)", (ETC / "fluent-bit.conf").read_text())
    kept = [text for text in sections if not text.startswith(("[INPUT]", "[OUTPUT]"))]
    own = [
        "[INPUT]\n    Name stdin\n    Tag journal\n    Buffer_Size 1M\n",
        f"[OUTPUT]\n    Name file\n    Match *\n    Path {folder / 'tags'}\n    Format out_file\n",
    ]
    (folder / "tags").mkdir()
    text = "\n".join((*kept, *own)).replace("/var/lib/fluent-bit/empd", str(folder / "storage"))
    (folder / "fluent-bit.conf").write_text(text)
    (folder / "fluent-bit-parsers.conf").write_text((ETC / "fluent-bit-parsers.conf").read_text())
    lines = "".join(json.dumps(record) + "\n" for record in records)
    done = subprocess.run(
        [os.environ.get("FLUENT_BIT", "fluent-bit"), "-c", "fluent-bit.conf"],
        cwd=folder, input=lines, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "[error]" not in done.stderr, done.stderr
    found: dict[str, list[dict[str, Any]]] = {}
    for path in (folder / "tags").iterdir():
        for line in path.read_text().splitlines():
            at, body = re.fullmatch(r"\S+: \[(\d+\.\d+), (\{.*\})\]", line).groups()  # type: ignore[union-attr]
            found.setdefault(path.name, []).append({"date": float(at), **json.loads(body)})
    return found


def test_each_record_is_parsed_timed_and_routed_and_none_left_out(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    records = []
    for kind in KINDS.values():
        records += [{**JOURNAL, "MESSAGE": line} for line in written(capfd, kind).splitlines()]
    count = len(records)
    found = run([*records, *({**JOURNAL, "MESSAGE": text} for text in TEXTS)], tmp_path)
    assert {tag: len(rows) for tag, rows in found.items()} == {**dict.fromkeys(KINDS, 1), "empd.text": len(TEXTS)}
    assert count == len(KINDS)
    for tag in KINDS:
        (record,) = found[tag]
        assert datetime.fromisoformat(record["timestamp"]).timestamp() == pytest.approx(record["date"], abs=1e-4)
        assert record["HOSTNAME"] == JOURNAL["HOSTNAME"]
        assert "MESSAGE" not in record
