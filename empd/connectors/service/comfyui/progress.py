"""From messages about nodes to one percentage of a prompt that never falls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from empd.connectors.service.comfyui.workflow import Graph


class Standing(NamedTuple):
    """How far a prompt is. `step` of `steps` is the running node's; 0 of 0 when it has none."""

    fraction: float
    message: str
    step: int
    steps: int


class NodeProgress:
    """Adds up what is known of the nodes of a graph.

    A node counts as much as it has steps to do (its input `steps`), one without counts once: so a sampler of 20 steps
    moves the percentage more than the loader before it.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._weights = {node: 1.0 + _steps(graph[node]["inputs"]) for node in graph}
        self._total = sum(self._weights.values()) or 1.0
        self._done: dict[str, float] = {}
        self._node = ""
        self._step = self._steps = 0
        self._fraction = 0.0

    @property
    def node(self) -> str:
        """The node that runs; empty before the first."""
        return self._node

    def finish(self, nodes: Iterable[str]) -> None:
        """These are done, or are taken from an earlier run."""
        for node in nodes:
            self._note(node, 1.0)

    def begin(self, node: str) -> None:
        """A node starts. Whoever ran before is done: ComfyUI runs one node at a time."""
        if node != self._node:
            self.finish((self._node,))
            self._node = node
            self._step = self._steps = 0
            self._note(node, 0.0)

    def step(self, node: str, value: Any, most: Any) -> None:
        """A node has done `value` of `most` steps."""
        if not isinstance(value, (int, float)) or not isinstance(most, (int, float)) or most <= 0:
            return
        if node == self._node and most > 1:
            self._step, self._steps = int(value), int(most)
        self._note(node, value / most)

    def states(self, states: Mapping[str, Any]) -> None:
        """The states of all nodes that have begun, as `progress_state` tells them."""
        for node, state in states.items():
            if isinstance(state, dict):
                if state.get("state") == "finished":
                    self._note(node, 1.0)
                else:
                    self.step(node, state.get("value"), state.get("max"))

    def standing(self) -> Standing:
        """Where the prompt is now."""
        done = sum(self._weights[node] * part for node, part in self._done.items())
        self._fraction = max(self._fraction, min(1.0, done / self._total))
        words = ""
        if self._node in self._graph:
            number = min(len(self._graph), sum(part >= 1.0 for part in self._done.values()) + 1)
            words = f"{describe(self._graph, self._node)}, node {number} of {len(self._graph)}"
            if self._steps:
                words += f", step {self._step} of {self._steps}"
        return Standing(self._fraction, words, self._step, self._steps)

    def _note(self, node: str, part: float) -> None:
        # Nodes that a node makes while it runs (subgraphs) are no part of the graph; their parent counts.
        if node in self._weights:
            self._done[node] = max(self._done.get(node, 0.0), min(1.0, part))


def describe(graph: Graph, node: str) -> str:
    """A node as people know it: `KSampler (3)`, or `Final image (9)` where it has a title of its own."""
    about = graph.get(node, {})
    title = about.get("_meta", {}).get("title") if isinstance(about.get("_meta"), dict) else None
    return f"{title or about.get('class_type') or 'node'} ({node})"


def _steps(inputs: Mapping[str, Any]) -> float:
    steps = inputs.get("steps")
    return float(steps) if isinstance(steps, int) and 0 < steps <= 10_000 else 0.0
