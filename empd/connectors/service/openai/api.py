"""What all OpenAI connectors share: credentials, the vendor's verdicts, models, the log schema, one paid call.

Source: openai/openai-openapi 2.3.0 for paths and fields; the error codes are those of the API's guides.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import msgspec
import orjson

from empd.connectors.base import ConnectorConfig, DescribesService, HasModels, Site
from empd.connectors.context import Context
from empd.connectors.failures import AuthFailed, BadResponse, ConnectorError, InvalidInput
from empd.connectors.logger import ServiceLog
from empd.connectors.protocol.auth import BearerAuth
from empd.connectors.protocol.http import HTTPConnector
from empd.connectors.protocol.http_poll import PollConfig
from empd.connectors.protocol.verdicts import VerdictTable
from empd.connectors.service.openai.faults import FAILED, VERDICTS
from empd.errors import FailureClass

DEFAULT_BASE_URL = "https://api.openai.com/v1"

NOT_SENT = frozenset(
    {
        "ctx", "bucket", "prefix", "filename", "provider", "cdnUrl", "cdn_url", "workflow_name", "user_id",
        "generation_context", "save_assets",
    }
)  # fmt: skip
"""Keys of a payload that are meant for the daemon or its clients, never for the service."""


class TokenUsage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens of one call."""

    prompt: int = 0
    completion: int = 0


class OpenAILog(ServiceLog):
    """One call, as it is logged."""

    schema: ClassVar[str] = "openai"
    model: str = ""
    request_id: str = ""
    token_usage: TokenUsage = TokenUsage()
    total_tokens: int = 0
    response_time_ms: float = 0.0


class OpenAIConfig(PollConfig):
    """`base_url` is any server that speaks the API; a key is needed for the vendor's own. `model` is for jobs that name
    none, `defaults` are parameters for jobs that leave them out. Polled are background responses only."""

    api_key: str = ""
    organization: str = ""
    project: str = ""
    model: str = ""
    defaults: dict[str, Any] = {}
    health_path: str = "/models"
    status_path: str = "/responses/{id}"
    cancel_path: str = "/responses/{id}/cancel"


class OpenAIConnector(HTTPConnector, HasModels, DescribesService):
    """Base of the family."""

    service_type: ClassVar[str] = "openai"
    default_base_url: ClassVar[str] = DEFAULT_BASE_URL
    default_model: ClassVar[str] = ""
    verdicts: ClassVar[VerdictTable] = VERDICTS
    Config: ClassVar[type[ConnectorConfig]] = OpenAIConfig
    config: OpenAIConfig

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        assert isinstance(config, OpenAIConfig)
        named = {"OpenAI-Organization": config.organization, "OpenAI-Project": config.project}
        headers = {**config.headers, **{name: value for name, value in named.items() if value}}
        auth = config.auth or (BearerAuth(token=config.api_key) if config.api_key else None)
        super().__init__(msgspec.structs.replace(config, headers=headers, auth=auth), site)

    async def open(self) -> None:
        """Raises AuthFailed where the vendor's own service is meant and there is no key."""
        if self.config.auth is None and self.base_url == DEFAULT_BASE_URL:
            raise AuthFailed(
                f"services.{self.site.service}.api_config: set api_key, for instance to ${{OPENAI_API_KEY}}"
            )
        await super().open()

    async def models(self) -> list[str]:
        """The ids that the service lists."""
        listed = (await self.request("GET", "/models")).json()
        entries = listed.get("data") if isinstance(listed, dict) else None
        return [str(entry["id"]) for entry in entries or () if isinstance(entry, dict) and "id" in entry]

    async def service_info(self) -> dict[str, Any]:
        """Where it is, and the model that jobs get which name none."""
        return {"base_url": self.base_url, "model": self.config.model or self.default_model}

    def parameters(self, payload: Any, *own: str) -> dict[str, Any]:
        """What of a payload goes to the service: all but `own` and what is never sent, over the configured defaults.

        Raises InvalidInput unless it is an object that names a model, or there is one for those that name none.
        """
        if not isinstance(payload, dict):
            raise InvalidInput("the payload must be an object")
        kept = {name: value for name, value in payload.items() if name not in NOT_SENT and name not in own}
        asked = {**self.config.defaults, **kept}
        asked["model"] = asked.get("model") or self.config.model or self.default_model
        if not asked["model"]:
            raise InvalidInput("model is missing, and the service has no default one")
        return asked

    @contextlib.asynccontextmanager
    async def paid(self, context: Context) -> AsyncIterator[None]:
        """Around a call that costs money and cannot be asked for again: the intent is journaled first, so that after a
        crash the job shows the doubt. A failure that the service told ends the submission."""
        await context.upstream.intend("openai", deduplicates=bool(self.config.idempotency_header))
        try:
            yield
        except ConnectorError as error:
            if error.retry and error.failure is FailureClass.RATE_LIMITED:
                await context.upstream.ended()
            raise

    def event_of(self, data: str) -> dict[str, Any]:
        """An event of a stream. An error can come in the middle of one whose status was good: it is raised."""
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise BadResponse(f"an event of the stream is not JSON: {data[:80]!r}") from None
        if not isinstance(event, dict):
            raise BadResponse(f"an event of the stream is no object: {data[:80]!r}")
        if event.get("error") or event.get("type") == "error":
            row = self.verdicts.of_code(*self.verdicts.codes(event)) or FAILED
            raise row.error(self.redact(self.verdicts.message(event)))
        return event

    def note(self, context: Context, record: OpenAILog) -> None:
        """Logs a call, under its job."""
        record.response_time_ms = round(context.clock() * 1e3 - context.started_ns / 1e6, 3)
        self.log.with_job(context).service(record, "call")


def usage_of(usage: Any) -> dict[str, float]:
    """Token counts under one set of names, whichever the endpoint uses."""
    if not isinstance(usage, dict):
        return {}
    names = {
        "input_tokens": ("input_tokens", "prompt_tokens"),
        "output_tokens": ("output_tokens", "completion_tokens"),
        "total_tokens": ("total_tokens",),
    }
    found: dict[str, float] = {}
    for name, sources in names.items():
        counts = [usage[source] for source in sources if isinstance(usage.get(source), (int, float))]
        if counts:
            found[name] = float(counts[0])
    return found


def log_of(model: str, request_id: str, usage: dict[str, float]) -> OpenAILog:
    """The record of a call."""
    tokens = TokenUsage(int(usage.get("input_tokens", 0)), int(usage.get("output_tokens", 0)))
    return OpenAILog(
        model=model, request_id=request_id, token_usage=tokens, total_tokens=int(usage.get("total_tokens", 0))
    )
