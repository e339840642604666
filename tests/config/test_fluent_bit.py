"""etc/fluent-bit.conf against the records that the daemon really writes."""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from empd.builtin import BUILT_IN_CONNECTORS
from empd.cli.config import config as config_command
from empd.connectors import registry
from empd.connectors.base import ConnectorConfig, Service, Site
from empd.connectors.protocol.grpc import GRPCConnector
from empd.connectors.protocol.http import HTTPConnector
from empd.connectors.protocol.stream import StreamConnector
from empd.connectors.protocol.websocket import WebSocketConnector
from empd.mapping import Mapping
from empd.samples import fluent_bit_inputs
from empd.supervisor.log import JsonLines
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
(USED,) = [keys["Parser"] for kind, keys in CONF if kind == "FILTER" and "Parser" in keys]
(PARSER,) = [keys for kind, keys in read("fluent-bit-parsers.conf") if kind == "PARSER" and keys["Name"] == USED]
TIME_FORMAT = PARSER["Time_Format"][0].replace("%L", "%f")
"""Fluent Bit's %L is what Python calls %f."""

KNOWN = {
    "SERVICE": {"flush", "log_level", "parsers_file", "storage.path"},
    "systemd": {"path", "systemd_filter", "max_entries", "read_from_tail", "strip_underscores", "db"},
    "tail": {
        "path", "path_key", "read_from_head", "refresh_interval", "buffer_max_size", "skip_long_lines", "db",
    },
    "parser": {"key_name", "parser", "reserve_data", "preserve_key"},
    "rewrite_tag": {"rule", "emitter_name", "emitter_storage.type", "emitter_mem_buf_limit"},
    "stdout": {"format"},
    "PARSER": {"name", "format", "time_key", "time_format", "time_keep"},
}  # fmt: skip
"""Keys of sections and plugins, lower case: Fluent Bit does not start with one that it does not know."""

RULES = [
    rule.split() for kind, keys in CONF if kind == "FILTER" and keys["Name"] == ["rewrite_tag"] for rule in keys["Rule"]
]


JOURNAL = {"TRANSPORT": "stdout", "SYSLOG_IDENTIFIER": "empd", "PRIORITY": "6", "HOSTNAME": "box"}
"""Fields that journald gives every line of a unit, as `Strip_Underscores` leaves them."""


def parse(message: str) -> dict[str, Any]:
    """What the parser filter makes of a journal record: its JSON's fields in the place of MESSAGE."""
    try:
        found = json.loads(message)
    except ValueError:
        found = None
    return {**JOURNAL, **(found if isinstance(found, dict) else {"MESSAGE": message})}


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


def test_every_built_in_connectors_protocol_has_a_tag() -> None:
    protocols = {registry.load_class(name).protocol for name in BUILT_IN_CONNECTORS}
    assert {tag_of({**JOURNAL, "event": "e", "protocol": protocol}) for protocol in protocols} == {
        f"empd.{protocol}" for protocol in protocols
    }


def test_the_supervisors_lines_are_the_daemons() -> None:
    line = logging.LogRecord("empd.supervisor", logging.INFO, __file__, 1, "broker: UP", None, None)
    record = parse(JsonLines().format(line))
    assert tag_of(record) == "empd.daemon"
    assert datetime.strptime(record[PARSER["Time_Key"][0]], TIME_FORMAT)  # noqa: DTZ007


@pytest.mark.parametrize(
    "line",
    [
        "empd 0.1.0: clients at ipc:///run/empd",
        "[1, 2]",
        '{"no": "event"}',
        '{"event": 3, "protocol": null}',
        "{",
        "",
        " ",
    ],
)
def test_whatever_else_is_written_has_a_place_too(line: str) -> None:
    assert tag_of(parse(line)) == "empd.text"


def test_the_parser_reads_the_time_that_records_have(capfd: pytest.CaptureFixture[str]) -> None:
    assert PARSER["Format"] == ["json"]
    record = parse(written(capfd, None))
    assert datetime.strptime(record[PARSER["Time_Key"][0]], TIME_FORMAT)  # noqa: DTZ007


def test_every_tag_has_somewhere_to_go() -> None:
    outputs = [keys["Match"][0] for kind, keys in CONF if kind == "OUTPUT"]
    # A record that the emitter has no room for keeps the tag of its input.
    inputs = [keys["Tag"][0] for kind, keys in CONF if kind == "INPUT"]
    for tag in [*(rule[2] for rule in RULES), *inputs]:
        assert any(re.fullmatch(match.replace(".", r"\.").replace("*", ".*"), tag) for match in outputs), tag
    assert all(keys["Match"] == ["journal"] for kind, keys in CONF if kind == "FILTER")


def test_a_restart_of_fluent_bit_leaves_nothing_out() -> None:
    (service_section,) = [keys for kind, keys in CONF if kind == "SERVICE"]
    folder = service_section["storage.path"][0]  # which Fluent Bit makes, so that the others have theirs
    places = [keys["DB"][0] for kind, keys in CONF if kind == "INPUT"]
    assert len({Path(place).parent for place in places} | {Path(folder)}) == 1
    assert len(set(places)) == len(places), "inputs that share a database drop each other's places"
    assert all(keys["storage.type"] == ["filesystem"] for kind, keys in CONF if kind == "INPUT")


def test_only_words_that_fluent_bit_knows_are_used() -> None:
    for kind, keys in CONF:
        plugin = keys.get("Name", [kind])[0]
        assert {key.lower() for key in keys} <= KNOWN[plugin] | {"name", "match", "tag", "storage.type"}, plugin
    for kind, keys in read("fluent-bit-parsers.conf"):
        assert {key.lower() for key in keys} <= KNOWN[kind]


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
    # The sample file has what the command prints for what the sample mapping shows, its remarks included.
    sample = json.loads((ETC / "service-mapping.json").read_text())
    shown = [entry for entry in sample["services"].values() if isinstance(entry, dict) and "telemetry_logs" in entry]
    path.write_text(
        json.dumps(
            mapping_of(**{str(i): service(telemetry_logs=entry["telemetry_logs"]) for i, entry in enumerate(shown)})
        )
    )
    printed = fluent_bit_inputs(Mapping.load(path))
    assert printed.count("[INPUT]") >= 1
    assert printed in (ETC / "fluent-bit.conf").read_text()
