"""Whether a worker's capabilities meet a job's requirements.

A requirement is a dict: key → value, where a dot in a key steps into nested capabilities. A list asks for all its
members (of a list, or one scalar), a number for at least as much, a dict for each of its keys, `"all"` for nothing
in particular, anything else for equality. `positive_requirements` and `negative_requirements` hold two such dicts;
of the negative ones none may be met. A bare dict is all positive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_MISSING = object()
DEPTH_MAX = 16


def matches(requirements: Mapping[str, Any] | None, capabilities: Mapping[str, Any]) -> bool:
    """True when every positive requirement is met and no negative one is."""
    if not requirements:
        return True
    positive, negative = split(requirements)
    if not all(_met(need, _lookup(capabilities, key)) for key, need in positive.items()):
        return False
    return not any(_met(need, _lookup(capabilities, key)) for key, need in negative.items())


def could_match(requirements: Mapping[str, Any] | None, capabilities: Mapping[str, Any]) -> bool:
    """As `matches`, but keys that the capabilities do not name count as met: they may be reported at run time."""
    if not requirements:
        return True
    positive, negative = split(requirements)
    for key, need in positive.items():
        have = _lookup(capabilities, key)
        if have is not _MISSING and not _met(need, have):
            return False
    return not any(_met(need, _lookup(capabilities, key)) for key, need in negative.items())


def split(requirements: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The positive and the negative requirements. Keys beside the two named ones are positive as well."""
    positive = {k: v for k, v in requirements.items() if k not in ("positive_requirements", "negative_requirements")}
    positive.update(requirements.get("positive_requirements") or {})
    return positive, requirements.get("negative_requirements") or {}


def problem(requirements: Mapping[str, Any]) -> str:
    """What is wrong with the form of `requirements`; empty when nothing is."""
    for name in ("positive_requirements", "negative_requirements"):
        if not isinstance(requirements.get(name) or {}, dict):
            return f"requirements.{name} must be an object"
    level: list[Any] = [requirements]
    for _ in range(DEPTH_MAX):
        if any(isinstance(value, dict) and not all(isinstance(key, str) for key in value) for value in level):
            return "requirements: every key must be a string"
        level = [item for value in level for item in _members(value)]
        if not level:
            return ""
    return f"requirements are nested deeper than {DEPTH_MAX} levels"


def _members(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (list, tuple)) else ()


def _lookup(capabilities: Mapping[str, Any], path: str) -> Any:
    if path in capabilities:
        return capabilities[path]
    found: Any = capabilities
    for step in path.split("."):
        if not isinstance(found, Mapping) or step not in found:
            return _MISSING
        found = found[step]
    return found


def _met(need: Any, have: Any) -> bool:
    if need == "all":
        return True
    if have is _MISSING:
        return False
    if isinstance(need, (list, tuple)):
        members = have if isinstance(have, (list, tuple)) else (have,)
        return all(member in members for member in need)
    if isinstance(need, Mapping):
        return isinstance(have, Mapping) and all(_met(value, have.get(key, _MISSING)) for key, value in need.items())
    if isinstance(need, bool) or isinstance(have, bool):
        return bool(need == have)
    if isinstance(need, (int, float)):
        return isinstance(have, (int, float)) and have >= need
    if isinstance(have, (list, tuple)):
        return need in have
    return bool(need == have)
