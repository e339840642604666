"""Model servers that speak the Open Inference Protocol (KServe v2) over gRPC: Triton, MLServer, and others.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec

from empd.connectors.base import ConnectorConfig, DescribesService, HasModels, Site
from empd.connectors.context import Context, JobView
from empd.connectors.failures import BadResponse, ConnectorError, InvalidInput, ServiceUnavailable
from empd.connectors.protocol import kserve
from empd.connectors.protocol.grpc import GRPCConnector
from empd.connectors.protocol.grpc_config import GRPCConfig

READY = "READY"


class KServeConfig(GRPCConfig):
    """`model`: for payloads that name none; the service is healthy when it is ready. `raw_results`: outputs that come
    as raw contents stay bytes. A stream ends after `stream_answers_max` answers."""

    model: str = ""
    version: str = ""
    raw_results: bool = False
    stream_answers_max: Annotated[int, msgspec.Meta(ge=1)] = 10_000


class KServeConnector(GRPCConnector, HasModels, DescribesService):
    """A payload is `{"inputs": [{"name", "datatype", "shape", "data"}, …]}`, and may have `model`, `version`,
    `outputs` (names), `parameters`, `raw` (send raw contents), and `stream`.

    The result is `{"model", "version", "outputs": [tensor, …]}`. With `"stream": true` each answer is shown as a
    partial result, and the result is `{"answers": [result, …]}`; `requests` may hold several payloads for the stream.
    """

    connector_id = "kserve"
    service_type = "kserve"
    default_base_port = 8001
    Config: ClassVar[type[ConnectorConfig]] = KServeConfig
    config: KServeConfig

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        super().__init__(config, site)
        self._server = ""

    async def check_health(self) -> bool:
        """Whether server and model are ready."""
        ready = kserve.method("ServerReady")
        if not (await self.unary(ready, ready.request())).ready:
            return False
        if not self._server:
            self._server = (await self.service_info()).get("name", "")
        if not self.config.model:
            return True
        ready = kserve.method("ModelReady")
        asked = ready.request(name=self.config.model, version=self.config.version)
        if not (await self.unary(ready, asked)).ready:
            raise ServiceUnavailable(f"model {self.config.model} is not ready")
        return True

    async def process(self, job: JobView, context: Context) -> Any:
        """One inference, or one stream of them."""
        payload = await context.load()
        if isinstance(payload, dict) and payload.get("stream"):
            return await self._stream(payload, context)
        method = kserve.method("ModelInfer")
        response = await self.unary(method, self._request(payload, context), context)
        return kserve.infer_result(response, raw=self.config.raw_results)

    async def models(self) -> list[str]:
        """The models that are ready: those that the server lists, and the configured one."""
        found = {self.config.model} if self.config.model else set()
        method = kserve.method("RepositoryIndex")
        try:
            index = await self.unary(method, method.request(ready=True))
        except ConnectorError:
            return sorted(found)
        return sorted({*found, *(model.name for model in index.models if model.state == READY)})

    async def service_info(self) -> dict[str, Any]:
        """Name, version and extensions of the server, and inputs and outputs of the configured model."""
        method = kserve.method("ServerMetadata")
        info = kserve.fields_of(await self.unary(method, method.request()))
        if self.config.model:
            method = kserve.method("ModelMetadata")
            asked = method.request(name=self.config.model, version=self.config.version)
            try:
                info["model"] = kserve.fields_of(await self.unary(method, asked))
            except ConnectorError as error:
                info["model"] = {"name": self.config.model, "error": error.message}
        return info

    def _request(self, payload: Any, context: Context) -> Any:
        if isinstance(payload, dict) and self.config.version and not payload.get("model"):
            payload = {"version": self.config.version, **payload}
        return kserve.infer_request(payload, self.config.model, context.idempotency_key)

    async def _stream(self, payload: dict[str, Any], context: Context) -> Any:
        shared = {name: value for name, value in payload.items() if name not in ("stream", "requests")}
        many = payload.get("requests", [{}])
        if not isinstance(many, list) or not many or not all(isinstance(one, dict) for one in many):
            raise InvalidInput("requests: a list of payloads")
        requests = [self._request({**shared, **one}, context) for one in many]
        answers: list[dict[str, Any]] = []

        def take(data: bytes) -> None:
            if len(answers) >= self.config.stream_answers_max:
                raise BadResponse(f"the stream has more than {self.config.stream_answers_max} answers", retry=False)
            answer = kserve.infer_result(kserve.stream_answer(data, self._server), raw=self.config.raw_results)
            answers.append(answer)
            context.partial(answer)

        await self.stream(kserve.method("ModelStreamInfer"), requests, take, context)
        return {"answers": answers}
