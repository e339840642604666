"""What a chat completion says, put together from its chunks, or taken whole. Pure."""

from __future__ import annotations

from typing import Any, Self

from empd.connectors.failures import BadResponse


class Transcript:
    """The first choice of a completion. `finish_reason` None: it is not complete. `chunks` counts pieces of text."""

    def __init__(self) -> None:
        self.id = ""
        self.model = ""
        self.finish_reason: str | None = None
        self.refusal = ""
        self.usage: Any = None
        self.chunks = 0
        self._texts: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._texts)

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The calls of tools, in order."""
        return [self._calls[index] for index in sorted(self._calls)]

    @classmethod
    def of(cls, completion: Any) -> Self:
        """A completion that came whole. Raises BadResponse."""
        found = cls()
        found._head(completion)
        choice = _choice(completion)
        if choice is None:
            raise BadResponse("the answer has no choices")
        found._add(choice.get("message"))
        found.finish_reason = choice.get("finish_reason") or "stop"
        return found

    def add(self, chunk: Any) -> None:
        """Takes one chunk of a stream. The one with the usage has no choices. Raises BadResponse."""
        self._head(chunk)
        choice = _choice(chunk)
        if choice is not None:
            self._add(choice.get("delta"))
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def _head(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise BadResponse("the answer is not a completion")
        self.id = body.get("id") or self.id
        self.model = body.get("model") or self.model
        self.usage = body.get("usage") or self.usage

    def _add(self, message: Any) -> None:
        if not isinstance(message, dict):
            return
        if message.get("content"):
            self._texts.append(message["content"])
            self.chunks += 1
        self.refusal += message.get("refusal") or ""
        for place, part in enumerate(message.get("tool_calls") or ()):
            call = self._calls.setdefault(
                part.get("index", place), {"id": "", "type": "function", "name": "", "arguments": ""}
            )
            function = part.get("function") or {}
            call["id"] = part.get("id") or call["id"]
            call["name"] = function.get("name") or call["name"]
            call["arguments"] += function.get("arguments") or ""


def _choice(body: dict[str, Any]) -> dict[str, Any] | None:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    return choices[0]
