"""`${VAR}` and `${VAR:-default}` in the string values of plain data.

As in a shell: `${VAR}` must be set, `${VAR:-default}` takes the default when VAR is unset or empty. `$${` stands
for a plain `${`. Keys are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from empd.checking import COMMENT, Report

_FORMS = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(:-([^${}]*))?\}|\$\{")


def substitute(value: Any, environ: Mapping[str, str], path: str, report: Report) -> Any:
    """The same data with variables replaced and remarks (keys that begin with `//`) dropped.

    A variable that is not set, or a form that is none of these, is reported with its key path.
    """
    if isinstance(value, str):
        return _replace(value, environ, path, report)
    if isinstance(value, list):
        return [substitute(item, environ, f"{path}[{i}]", report) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {
            key: substitute(item, environ, f"{path}.{key}" if path else key, report)
            for key, item in value.items()
            if not key.startswith(COMMENT)
        }
    return value


def _replace(text: str, environ: Mapping[str, str], path: str, report: Report) -> str:
    def one(match: re.Match[str]) -> str:
        name, with_default, default = match.groups()
        if match[0] == "$${":
            return "${"
        if name is None:
            report(
                path, f"{text!r} has a broken variable; accepted: ${{VAR}}, ${{VAR:-default}}, or $${{ for a plain ${{"
            )
            return ""
        if with_default is not None:
            return environ.get(name) or default
        if name not in environ:
            report(
                path, f"the variable {name} is not set; accepted: {name} in the environment, or ${{{name}:-default}}"
            )
            return ""
        return environ[name]

    return _FORMS.sub(one, text) if "${" in text else text
