"""What a prompt has made, read from its outputs as `/history` and `executed` tell them.

An output is an object per node class: lists of files under `images`, `gifs`, `audio` and whatever custom nodes call
theirs; strings under `text`; anything else is data.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from empd.connectors.failures import InvalidInput
from empd.connectors.service.comfyui.workflow import Graph

_COUNTER = re.compile(r"_\d{5,}_?(?=\.[^.]*$)")


class OutputFile(NamedTuple):
    """A file at the server, as `/view` wants it named. `kind`: under which key the node listed it."""

    node: str
    kind: str
    filename: str
    subfolder: str
    type: str

    @property
    def plain_name(self) -> str:
        """The file's name without ComfyUI's counter: the same when the prompt is run again."""
        return _COUNTER.sub("", self.filename)


class Outputs(NamedTuple):
    """`texts`: (node, text). `data`: node → key → what else it showed."""

    files: list[OutputFile]
    texts: list[tuple[str, str]]
    data: dict[str, dict[str, Any]]


def read_outputs(shown: Mapping[str, Any], nodes: Collection[str] | None, temporary: str = "if_alone") -> Outputs:
    """Sorts what the nodes showed; only that of `nodes`, if given.

    `temporary`: whether files of type `temp` (`PreviewImage`) count: `always`, `never`, or `if_alone`, where there are
    no others.
    """
    found = Outputs([], [], {})
    for node in sorted(shown, key=_place):
        output = shown[node]
        if isinstance(output, dict) and (nodes is None or node in nodes):
            for key, value in output.items():
                _sort(found, node, key, value)
    lasting = [file for file in found.files if file.type != "temp"]
    if temporary == "never" or (temporary == "if_alone" and lasting):
        return found._replace(files=lasting)
    return found


def select_nodes(graph: Graph, wanted: Collection[str]) -> list[str]:
    """The ids of nodes named by id, title or class. Raises InvalidInput for a name that fits none."""
    found: list[str] = []
    for name in wanted:
        fitting = [node for node in graph if name in _names(graph, node)]
        if not fitting:
            raise InvalidInput(f"outputs: the workflow has no node {name!r}, by id, title or class")
        found += fitting
    return found


def _names(graph: Graph, node: str) -> Iterator[str]:
    yield node
    yield str(graph[node].get("class_type"))
    meta = graph[node].get("_meta")
    if isinstance(meta, dict):
        yield str(meta.get("title"))


def _sort(found: Outputs, node: str, key: str, value: Any) -> None:
    items = value if isinstance(value, list) else [value]
    rest = []
    for item in items:
        if isinstance(item, dict) and isinstance(item.get("filename"), str):
            found.files.append(
                OutputFile(
                    node, key, item["filename"], str(item.get("subfolder") or ""), str(item.get("type") or "output")
                )
            )
        elif isinstance(item, str) and key in ("text", "string", "texts"):
            found.texts.append((node, item))
        else:
            rest.append(item)
    # `animated` only says how the page should show the files beside it.
    if rest and key != "animated":
        found.data.setdefault(node, {})[key] = rest


def _place(node: str) -> tuple[int, int | str]:
    """Numbers in their order, other names after them."""
    return (0, int(node)) if node.isdecimal() else (1, node)
