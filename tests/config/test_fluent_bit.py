"""etc/fluent-bit.conf against the records that the daemon really writes."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from empd.cli.config import config as config_command
from empd.connectors.base import ConnectorConfig, Service, Site
from empd.connectors.protocol.grpc import GRPCConnector
from empd.connectors.protocol.http import HTTPConnector
from empd.connectors.protocol.stream import StreamConnector
from empd.connectors.protocol.websocket import WebSocketConnector
from empd.worker.log import Log
from tests.box import mapping_of, service

ETC = Path(__file__).resolve().parents[2] / "etc"
Section = tuple[str, dict[str, list[str]]]


def read(name: str) -> list[Section]:
    """Fluent Bit's classic format: sections in brackets, then a key and its value on each line."""
    sections: list[Section] = []
    for line in (ETC / name).read_text().splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if head := re.fullmatch(r"\[([A-Z]+)\]", text):
            sections.append((head[1], {}))
        else:
            key, value = text.split(maxsplit=1)
            sections[-1][1].setdefault(key, []).append(value)
    return sections


CONF = read("fluent-bit.conf")
RULES = [
    rule.split() for kind, keys in CONF if kind == "FILTER" and keys["Name"] == ["rewrite_tag"] for rule in keys["Rule"]
]


def parse(message: str) -> dict[str, Any]:
    """What the parser filter makes of a journal record: its JSON's fields in the place of MESSAGE."""
    try:
        found = json.loads(message)
    except ValueError:
        return {"MESSAGE": message}
    return found if isinstance(found, dict) else {"MESSAGE": message}


def tag_of(record: dict[str, Any]) -> str:
    for key, pattern, tag, keep in RULES:
        value = record.get(key.removeprefix("$"))
        if isinstance(value, str) and re.search(pattern, value):
            assert keep == "false", "the record would go on under both tags"
            return tag
    return "journal"


class Local(Service):
    """A connector that speaks no protocol."""


def written(capfd: pytest.CaptureFixture[str], kind: type[Service] | None) -> str:
    """One line as a worker writes it: a connector's own, or (None) the worker's."""
    log = Log("info", machine="box", worker="gpu0", generation=1, pid=1)
    if kind is None:
        log("worker_recycled", "warning", rss_bytes=1)
    else:
        connector = Service.__new__(kind)
        Service.__init__(connector, ConnectorConfig(), Site(service="s", logger=log.logger))
        connector.log.service_event("restarted")
    return capfd.readouterr().err.strip()


@pytest.mark.parametrize(
    ("kind", "tag"),
    [
        (HTTPConnector, "empd.http"),
        (WebSocketConnector, "empd.websocket"),
        (StreamConnector, "empd.stream"),
        (GRPCConnector, "empd.grpc"),
        (Local, "empd.local"),
        (None, "empd.daemon"),
    ],
)
def test_records_are_routed_by_protocol(capfd: pytest.CaptureFixture[str], kind: Any, tag: str) -> None:
    record = parse(written(capfd, kind))
    assert tag_of(record) == tag
    assert record["machine"] == "box"


def test_what_is_not_json_has_a_place_too() -> None:
    assert tag_of(parse("empd.supervisor: ready: 2 of 2 workers ready")) == "empd.text"
    assert tag_of(parse("[1, 2]")) == "empd.text"


def test_the_parser_reads_the_time_that_records_have(capfd: pytest.CaptureFixture[str]) -> None:
    (used,) = [keys["Parser"] for kind, keys in CONF if kind == "FILTER" and "Parser" in keys]
    (parser,) = [keys for kind, keys in read("fluent-bit-parsers.conf") if kind == "PARSER" and keys["Name"] == used]
    assert parser["Format"] == ["json"]
    record = parse(written(capfd, None))
    # Fluent Bit's %L is what Python calls %f.
    assert datetime.strptime(record[parser["Time_Key"][0]], parser["Time_Format"][0].replace("%L", "%f"))  # noqa: DTZ007


def test_every_tag_has_somewhere_to_go() -> None:
    outputs = [keys["Match"][0] for kind, keys in CONF if kind == "OUTPUT"]
    inputs = [keys["Tag"][0] for kind, keys in CONF if kind == "INPUT"]
    for tag in [*(rule[2] for rule in RULES), *(tag for tag in inputs if tag != "journal")]:
        assert any(re.fullmatch(match.replace(".", r"\.").replace("*", ".*"), tag) for match in outputs), tag
    assert all(keys["Match"] == ["journal"] for kind, keys in CONF if kind == "FILTER")


def test_log_files_of_the_services_are_collected(tmp_path: Path) -> None:
    raw = mapping_of(
        draw=service(telemetry_logs=[{"path": "/w/a/*.log", "name": "a"}, {"path": "/w/b.log"}]), other=service()
    )
    path = tmp_path / "mapping.json"
    path.write_text(json.dumps(raw))
    told = CliRunner().invoke(config_command, ["sample", "fluent-bit", "--mapping", str(path)])
    assert re.findall(r"Tag +(\S+)\n +Path +(\S+)", told.output) == [
        ("empd.file.a", "/w/a/*.log"),
        ("empd.file.draw", "/w/b.log"),
    ]
    # The sample file has what the sample mapping shows, its remarks included.
    sample = json.loads((ETC / "service-mapping.json").read_text())
    wanted = {
        log["path"]
        for entry in sample["services"].values()
        if isinstance(entry, dict)
        for log in entry.get("telemetry_logs", ())
    }
    assert {keys["Path"][0] for kind, keys in CONF if kind == "INPUT" and "Path" in keys} == wanted
