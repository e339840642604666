"""What the generic REST connectors share: requests from templates, and words at places."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol
from urllib.parse import quote

import orjson

from empd.connectors.base import ConnectorConfig, Site
from empd.connectors.context import Context, JobView
from empd.connectors.failures import BadResponse, ConnectorError
from empd.connectors.protocol.http import HTTPConnector, query_from
from empd.connectors.protocol.http_config import RequestOptions
from empd.connectors.protocol.http_response import HTTPResponse
from empd.connectors.protocol.json_pointer import MISSING, Pointer
from empd.connectors.protocol.template import Template, TextTemplate
from empd.job import format_id

PLACES = ("payload", "job_id")


class Shape(Protocol):
    """The request's templates in a configuration. `body` None: the payload itself is sent."""

    endpoint: str
    headers: dict[str, str]
    body: Any
    params: dict[str, Any]


class Shaped(HTTPConnector):
    """A connector whose main request is made from the configuration's templates."""

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        super().__init__(config, site)
        shape: Shape = self.config  # type: ignore[assignment]  # a subclass's Config has the fields
        try:
            self._body = Template(shape.body, PLACES) if shape.body is not None else None
            self._params = Template(shape.params, PLACES) if shape.params else None
            self._path = TextTemplate(shape.endpoint, PLACES, _quoted) if "{" in shape.endpoint else None
            self._headers = {name: TextTemplate(text, PLACES) for name, text in shape.headers.items() if "{" in text}
        except ValueError as error:
            raise ConnectorError(str(error), retry=False) from None
        self._has_templates = bool(self._headers) or self._path is not None or self._params is not None
        self._in_address = self.config.method == "GET" and not (self._path is None and self._params is None)

    def build_request_payload(self, job: JobView, context: Context) -> Any:
        """The filled body template; without one the payload, unless it has gone into path or query already."""
        if self._body is not None:
            return self._body.render(values_of(context))
        return {} if self._in_address else context.payload

    async def main_request(self, job: JobView, context: Context) -> tuple[str, str, RequestOptions]:
        """The main request with path, query and headers filled."""
        method, path, options = await super().main_request(job, context)
        if not self._has_templates:
            return method, path, options
        values = values_of(context)
        if self._params is not None:
            options["params"] = {**options.get("params", {}), **query_from(self._params.render(values))}
        if self._headers:
            filled = {name: template.render(values) for name, template in self._headers.items()}
            options["headers"] = {**options.get("headers", {}), **filled}
        return method, path if self._path is None else self._path.render(values), options


class _Brought(dict[str, Any]):
    """What a job brings; its id is written only for a place that names it."""

    job_id = 0

    def __missing__(self, name: str) -> str:
        return format_id(self.job_id)


def values_of(context: Context) -> dict[str, Any]:
    """What places in templates may name."""
    brought = _Brought(payload=context.payload)
    brought.job_id = context.job_id
    return brought


def _quoted(text: str) -> str:
    return quote(text, safe="")


class Words:
    """Words at a place in an answer: a text in any case, a number, true or false."""

    def __init__(self, place: str, words: Collection[str]) -> None:
        self._pointer = Pointer(place)
        self._words = frozenset(word.lower() for word in words)

    def word(self, body: Any) -> str | None:
        """The word there, in lower case; None when there is none."""
        found = self._pointer.find(body)
        if found is MISSING or found is None or isinstance(found, (dict, list)):
            return None
        return found.lower() if isinstance(found, str) else orjson.dumps(found).decode()

    def has(self, word: str | None) -> bool:
        """Whether it is one of the words."""
        return word in self._words

    def says(self, body: Any) -> bool:
        """Whether one of the words stands there."""
        return self.word(body) in self._words


def found_at(pointer: Pointer, response: HTTPResponse) -> Any:
    """The part of an answer that the pointer names. Raises BadResponse where there is nothing."""
    if not pointer.text:
        return response.value()
    found = pointer.find(response.json())
    if found is MISSING:
        raise BadResponse(f"the answer has nothing at {pointer.text}", evidence=response.text()[:2000])
    return found
