"""The README on servers that empd runs: its code as written, with four servers on two GPUs; its table of keys."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
from internal_box import ServerBox, free_ports

from empd.internal import InternalServer
from tests.box import wait_until

SECTION = (
    (Path(__file__).resolve().parents[2] / "empd" / "connectors" / "README.md")
    .read_text()
    .partition("## Servers that empd runs\n")[2]
    .partition("\n## ")[0]
)


def test_the_mapping_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (module,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    (mapping,) = re.findall(r"```json\n(.*?)```", SECTION, re.DOTALL)
    (tmp_path / module.splitlines()[0].removeprefix("# ")).write_text(module)
    base_port = free_ports(4)
    monkeypatch.setenv("PAGE_BASE_PORT", str(base_port))
    monkeypatch.setenv("PAGE_INSTANCES_PER_GPU", "2")
    with ServerBox(json.loads(mapping), gpus="virtual:2", python_path=tmp_path) as box:
        seen = set()

        def all_four() -> bool:
            with box.client() as client:
                answers = [handle.result(30) for handle in client.submit_many("page", ["/"] * 8)]
            seen.update((answer["from"], answer["status"]) for answer in answers)
            return len(seen) == 4

        wait_until(all_four, "an answer from each of the four servers")
    assert seen == {(f"http://127.0.0.1:{base_port + index}", 200) for index in range(4)}


def test_the_table_has_every_key() -> None:
    rows = [line for line in SECTION.splitlines() if line.startswith("| `")]
    told = {key for row in rows for key in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert told == {field.name for field in msgspec.structs.fields(InternalServer)}
