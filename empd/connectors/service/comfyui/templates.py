"""Workflow templates: a workflow in the API format whose values are filled in by name.

A template is a JSON file, either the bare workflow, with `{{name}}` or `{{name:default}}` in its texts (a text that is
nothing but one placeholder takes the value's type), or an object that names its parameters:

    {"workflow": {…}, "parameters": {"prompt": {"targets": ["6.text"]},
                                     "steps": {"targets": ["KSampler.steps"], "default": 20, "minimum": 1}}}

A target is `NODE.INPUT`, the node by id, title or class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from empd.connectors.failures import InvalidInput
from empd.connectors.service.comfyui.outputs import select_nodes
from empd.connectors.service.comfyui.workflow import Graph, chance_seed, read_graph, seeds_of

_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*(?::((?:[^}]|\}(?!\}))*))?\}\}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class Parameter(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One named value of a template; without a default it must be given."""

    targets: tuple[str, ...]
    default: Any = msgspec.UNSET
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None


class Template(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A workflow with named parameters."""

    workflow: Any
    parameters: dict[str, Parameter] = {}
    description: str = ""


def load_template(directory: str, name: str) -> Template:
    """The template `NAME.json` of a directory. Raises InvalidInput when there is none, or it cannot be read."""
    if not directory:
        raise InvalidInput(f"template {name!r}: no templates_dir is configured; give the workflow itself")
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"template {name!r}: not a name; accepted: letters, digits, _ . -")
    path = Path(directory) / f"{name}.json"
    try:
        raw = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in Path(directory).glob("*.json"))) or "none"
        raise InvalidInput(f"there is no template {name!r}; there are: {known}") from None
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidInput(f"template {name!r} cannot be read: {error}") from None
    return template_of(raw, f"template {name!r}")


def template_of(raw: Any, where: str = "workflow") -> Template:
    """A template from its JSON. Raises InvalidInput."""
    if isinstance(raw, dict) and "workflow" in raw:
        try:
            return msgspec.convert(raw, Template)
        except msgspec.ValidationError as error:
            raise InvalidInput(f"{where}: {error}") from None
    return Template(workflow=raw)


def fill(template: Template, values: Mapping[str, Any], where: str = "workflow") -> Graph:
    """The template's workflow with the values in it. Raises InvalidInput for one that is missing, unknown or wrong."""
    graph = read_graph(template.workflow, where)
    used: set[str] = set()
    for body in graph.values():
        body["inputs"] = {name: _filled(value, values, used) for name, value in body["inputs"].items()}
    for name, parameter in template.parameters.items():
        value = values.get(name, parameter.default)
        if value is msgspec.UNSET:
            raise InvalidInput(f"parameters.{name}: missing, and it has no default")
        _check(name, parameter, value)
        used.add(name)
        for target in parameter.targets:
            _put(graph, target, value)
    for name in values.keys() - used:
        if "." not in name:
            known = ", ".join(sorted({*template.parameters, *used})) or "none, or NODE.INPUT"
            raise InvalidInput(f"parameters.{name}: the workflow has no such parameter; there are: {known}")
        _put(graph, name, values[name])
    return graph


def set_seeds(graph: Graph, seed: Any, job_id: int, salt: str = "") -> dict[str, int]:
    """Sets every seed: a number as it is, `"random"` or -1 to one that is the same in every attempt at the job.

    Returns node → seed. Raises InvalidInput for anything else.
    """
    if seed in ("random", -1):
        seed = chance_seed(job_id, salt)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise InvalidInput('seed: expected a number from 0 to 2⁶⁴ − 1, or "random"')
    places = list(seeds_of(graph))
    if not places:
        raise InvalidInput("seed: no node of the workflow has an input seed or noise_seed")
    for node, name in places:
        graph[node]["inputs"][name] = seed
    return {node: seed for node, _ in places}


def _filled(value: Any, values: Mapping[str, Any], used: set[str]) -> Any:
    if not isinstance(value, str):
        return value
    whole = _PLACEHOLDER.fullmatch(value)
    if whole:
        return _value_of(whole, values, used)
    return _PLACEHOLDER.sub(lambda match: str(_value_of(match, values, used)), value)


def _value_of(match: re.Match[str], values: Mapping[str, Any], used: set[str]) -> Any:
    name, default = match.groups()
    used.add(name)
    if name in values:
        return values[name]
    if default is None:
        raise InvalidInput(f"parameters.{name}: missing, and it has no default")
    try:
        return msgspec.json.decode(default)
    except msgspec.DecodeError:
        return default


def _check(name: str, parameter: Parameter, value: Any) -> None:
    if parameter.choices and value not in parameter.choices:
        raise InvalidInput(f"parameters.{name}: {value!r} is not one of {', '.join(map(repr, parameter.choices))}")
    bounds = (parameter.minimum, parameter.maximum)
    if bounds != (None, None):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidInput(f"parameters.{name}: expected a number")
        if parameter.minimum is not None and value < parameter.minimum:
            raise InvalidInput(f"parameters.{name}: {value} is less than {parameter.minimum:g}")
        if parameter.maximum is not None and value > parameter.maximum:
            raise InvalidInput(f"parameters.{name}: {value} is more than {parameter.maximum:g}")


def _put(graph: Graph, target: str, value: Any) -> None:
    name, _, key = target.rpartition(".")
    nodes = select_nodes(graph, (name,)) if name else []
    if not nodes:
        raise InvalidInput(f"{target!r} is no target; expected NODE.INPUT")
    for node in nodes:
        graph[node]["inputs"][key] = value
