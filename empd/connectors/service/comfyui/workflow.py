"""Workflows in the API format: node id → `{"class_type": …, "inputs": {…}}`; an input may be `[node id, slot]`."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from typing import Any

import msgspec

from empd.connectors.failures import InvalidInput

Graph = dict[str, dict[str, Any]]

MODEL_INPUTS = ("ckpt_name", "unet_name", "model_name", "clip_name", "vae_name", "lora_name", "control_net_name")
"""The inputs by which loaders of stock ComfyUI name a model, the one that says most about a workflow first."""

_SEEDS = ("seed", "noise_seed")
_UI_FORMAT = (
    "the workflow is in the format of ComfyUI's page (it has a list of nodes and links); "
    "export it with Workflow → Export (API), or Save (API Format) in older versions"
)


def read_graph(value: Any, where: str = "workflow") -> Graph:
    """A copy of a workflow in the API format. Raises InvalidInput that says what is wrong, and with which node."""
    if isinstance(value, (str, bytes)):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise InvalidInput(f"{where}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{where}: expected an object, node id → node")
    if isinstance(value.get("nodes"), list):
        raise InvalidInput(f"{where}: {_UI_FORMAT}")
    if not value:
        raise InvalidInput(f"{where}: there is no node in it")
    for node, body in value.items():
        if not isinstance(body, dict) or not isinstance(body.get("class_type"), str):
            raise InvalidInput(f"{where}: node {node!r} has no class_type")
        if not isinstance(body.setdefault("inputs", {}), dict):
            raise InvalidInput(f"{where}: node {node!r} has inputs that are no object")
    return {str(node): body for node, body in copy.deepcopy(value).items()}


def models_of(graph: Graph) -> list[str]:
    """The model files that a workflow names, the checkpoint first."""
    found: dict[str, None] = {}
    for name in MODEL_INPUTS:
        for node in graph.values():
            value = node["inputs"].get(name)
            if isinstance(value, str):
                found[value] = None
    return list(found)


def fingerprint(graph: Graph) -> str:
    """The same for workflows that differ in seeds alone."""
    plain = [[node, body["class_type"], _without_seeds(body["inputs"])] for node, body in sorted(graph.items())]
    return hashlib.blake2b(msgspec.json.encode(plain, order="deterministic"), digest_size=8).hexdigest()


def seeds_of(graph: Graph) -> Iterator[tuple[str, str]]:
    """(node, input) of every seed that is a number and not a link."""
    for node, body in graph.items():
        for name in _SEEDS:
            if isinstance(body["inputs"].get(name), int):
                yield node, name


def chance_seed(job_id: int, salt: str = "") -> int:
    """A seed that nobody chose, the same in every attempt at a job: 0 … 2⁵³ − 1, which JavaScript can show."""
    digest = hashlib.blake2b(f"{job_id}:{salt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & ((1 << 53) - 1)


def replace_names(graph: Graph, names: dict[str, str]) -> None:
    """Puts the server's names of uploaded files where the workflow has the sender's."""
    for body in graph.values():
        for name, value in body["inputs"].items():
            if isinstance(value, str) and value in names:
                body["inputs"][name] = names[value]


def _without_seeds(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in _SEEDS}
