"""One name for one thing: a connector is called as its class, which lies in its family's file or folder."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

import empd
from empd.builtin import BUILT_IN_CONNECTORS
from empd.connectors import registry
from empd.connectors.endpoints import Defaults, default_url
from tests.test_architecture import MODULES, Module, code_lines

ROOM = Path(empd.__file__).parent / "connectors" / "service"
CODE_LINES_MAX = 150
ANOTHER_FAMILY = {"SSEConnector": "rest"}
"""Events are an HTTP answer in pieces: it is at home beside the other one."""


def test_the_name_in_a_mapping_is_the_classs_and_the_files() -> None:
    for name, target in BUILT_IN_CONNECTORS.items():
        module, class_name = target.split(":")
        assert class_name == name
        family = re.split(r"[._]", module.removeprefix("empd.connectors.service."))[0]
        assert name.lower().startswith(family) or ANOTHER_FAMILY.get(name) == family, f"{name} in {module}"


def test_every_connector_class_can_be_named_or_is_a_base() -> None:
    offered = {target.partition(":")[2] for target in BUILT_IN_CONNECTORS.values()}
    bases: set[str] = set()
    found: set[str] = set()
    for path in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases |= {base.id for base in node.bases if isinstance(base, ast.Name)}
                found |= {node.name} if node.name.endswith("Connector") else set()
    assert found - offered <= bases
    assert offered <= found


def test_every_connector_has_an_identity_of_its_own() -> None:
    kinds = [registry.load_class(name) for name in BUILT_IN_CONNECTORS]
    assert all(kind.service_type and kind.version for kind in kinds)
    assert [count for count in Counter(kind.connector_id for kind in kinds).items() if count[1] > 1] == []
    assert all(re.fullmatch(r"[a-z0-9_-]+", kind.connector_id) for kind in kinds)


def test_no_connector_is_longer_than_promised() -> None:
    def defines_a_connector(module: Module) -> bool:
        return any(isinstance(node, ast.ClassDef) and node.name.endswith("Connector") for node in module.tree.body)

    connectors = [
        module
        for module in MODULES
        if module.name.startswith("empd.connectors.service.") and defines_a_connector(module)
    ]
    assert len(connectors) >= len({target.partition(":")[0] for target in BUILT_IN_CONNECTORS.values()})
    assert {module.path: size for module in connectors if (size := len(code_lines(module))) > CODE_LINES_MAX} == {}


@pytest.mark.parametrize(
    ("name", "port"),
    [
        ("SimulationHttpConnector", 8299),
        ("ComfyUILocalConnector", 8188),
        ("ComfyUIBatchConnector", 8188),
        ("ComfyUIRemoteConnector", None),  # elsewhere: only its owner knows
        ("A1111LocalConnector", 7860),
        ("A1111CloudConnector", None),
    ],
)
def test_where_nobody_says_more_the_gpus_number_is_added_to_the_usual_port(name: str, port: int | None) -> None:
    kind = registry.load_class(name)
    defaults = Defaults(kind.default_base_url, kind.default_base_port)
    assert [default_url(defaults, gpu) for gpu in (0, 3)] == (
        ["", ""] if port is None else [f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 3}"]
    )
