"""Vectors of texts."""

from __future__ import annotations

from typing import Any, ClassVar

from empd.connectors.base import ConnectorConfig, Result
from empd.connectors.context import Context, JobView
from empd.connectors.failures import BadResponse, InvalidInput
from empd.connectors.protocol.http_response import HTTPResponse
from empd.connectors.service.openai.api import OpenAIConfig, OpenAIConnector, log_of, usage_of


class EmbeddingsConfig(OpenAIConfig):
    """The same text has the same vector: a `cache` pays here."""

    endpoint: str = "/embeddings"


class OpenAIEmbeddingsConnector(OpenAIConnector):
    """`{"input": text or list of texts}`; the result has `embeddings` in the same order."""

    connector_id = "openai_embeddings"
    default_model: ClassVar[str] = "text-embedding-3-small"
    Config: ClassVar[type[ConnectorConfig]] = EmbeddingsConfig

    def build_request_payload(self, job: JobView, context: Context) -> Any:
        """`input`, or `text` and `texts` as others call it."""
        payload = context.payload
        asked = self.parameters(payload, "text", "texts")
        asked.setdefault("input", payload.get("texts", payload.get("text")))
        if not asked["input"]:
            raise InvalidInput("input is missing: a text, or a list of texts")
        return asked

    def parse_response(self, response: HTTPResponse, job: JobView, context: Context) -> Any:
        """Vectors by their index, whatever the order they came in."""
        body = response.json()
        try:
            entries = sorted(body["data"], key=lambda entry: int(entry["index"]))
            vectors = [entry["embedding"] for entry in entries]
        except (KeyError, TypeError, ValueError):
            raise BadResponse("the answer has no embeddings") from None
        usage = usage_of(body.get("usage"))
        model = str(body.get("model", ""))
        self.note(context, log_of(model, response.headers.get("x-request-id", ""), usage))
        return Result({"embeddings": vectors, "model": model}, usage or None)
