"""Any gRPC service from the mapping alone: a method, a template for its request, a JSON pointer into its answer.

The message types come from the server's own reflection, or from a descriptor set (of `protoc --include_imports
--descriptor_set_out`). Messages are their JSON forms: names as in the .proto, bytes as base64, 64-bit integers as text.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec

from empd.connectors.base import ConnectorConfig, Site
from empd.connectors.context import Context, JobView
from empd.connectors.failures import BadResponse, ConnectorError, InvalidInput, ServiceUnavailable
from empd.connectors.protocol import reflection
from empd.connectors.protocol.descriptors import Descriptors, MethodType
from empd.connectors.protocol.grpc import GRPCConnector
from empd.connectors.protocol.grpc_config import GRPCConfig
from empd.connectors.protocol.json_pointer import MISSING, Pointer
from empd.connectors.protocol.template import Template
from empd.connectors.service.rest_shape import PLACES, values_of


class AIServiceConfig(GRPCConfig, kw_only=True):
    """`method`: `package.Service/Method`. `descriptor_set`: a file; empty: the server is asked. `request`: a template
    of the request (a list of them where the client streams); null: the payload is the request.

    `result`: where the result lies in an answer. Of a server's stream the result is the list of them, or their texts in
    one where `join` is set; `progress`: where an answer says how far it is (0…1).
    """

    method: str
    descriptor_set: str = ""
    request: Any = None
    result: str = ""
    progress: str = ""
    join: bool = False
    stream_answers_max: Annotated[int, msgspec.Meta(ge=1)] = 100_000


class AIServiceConnector(GRPCConnector):
    """Unary or streaming, as the method is."""

    connector_id = "ai_service"
    service_type = "grpc"
    Config: ClassVar[type[ConnectorConfig]] = AIServiceConfig
    config: AIServiceConfig

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        super().__init__(config, site)
        try:
            self._request = None if self.config.request is None else Template(self.config.request, PLACES)
            self._result = Pointer(self.config.result)
            self._progress = Pointer(self.config.progress) if self.config.progress else None
        except ValueError as error:
            raise ConnectorError(str(error), retry=False) from None
        self._descriptors = Descriptors()
        self._method: MethodType | None = None

    async def check_health(self) -> bool:
        """Whether there is a connection and the method is known."""
        await super().check_health()
        if self._method is None:
            await self._look_up()
        return True

    async def process(self, job: JobView, context: Context) -> Any:
        """One call."""
        method = self._method
        if method is None:
            raise ServiceUnavailable("the service's messages are not known yet")
        await context.load()
        requests = self._requests(method, context)
        if not method.client_streaming and not method.server_streaming:
            return self._found(await self.unary(method, requests[0], context))
        answers: list[Any] = []

        def take(data: bytes) -> None:
            if len(answers) >= self.config.stream_answers_max:
                raise BadResponse(f"the stream has more than {self.config.stream_answers_max} answers", retry=False)
            answer = method.response.FromString(data)
            answers.append(self._found(answer))
            context.partial(answers[-1])
            if self._progress is not None:
                fraction = self._progress.find(self._descriptors.to_json(answer))
                if isinstance(fraction, (int, float)):
                    context.progress(fraction)

        await self.stream(method, requests, take, context)
        if not method.server_streaming:
            return answers[0]
        return "".join(map(str, answers)) if self.config.join else answers

    def _requests(self, method: MethodType, context: Context) -> list[Any]:
        shape = context.payload if self._request is None else self._request.render(values_of(context))
        shapes = shape if method.client_streaming and isinstance(shape, list) else [shape]
        try:
            return [self._descriptors.from_json(method.request, one) for one in shapes]
        except ValueError as error:
            raise InvalidInput(f"no {method.request.DESCRIPTOR.full_name}: {error}") from None

    def _found(self, answer: Any) -> Any:
        found = self._result.find(self._descriptors.to_json(answer))
        if found is not MISSING:
            return found
        if self.config.join:
            return ""  # an empty field is left out of the JSON form
        raise BadResponse(f"the answer has nothing at {self._result.text}")

    async def _look_up(self) -> None:
        config = self.config
        service = config.method.lstrip("/").rpartition("/")[0]
        try:
            if config.descriptor_set:
                self._descriptors = await asyncio.to_thread(Descriptors.read, Path(config.descriptor_set))
            else:
                self._descriptors = await reflection.reflected(service, self._ask)
            self._method = self._descriptors.method(config.method)
        except (LookupError, ValueError, OSError) as error:
            raise ServiceUnavailable(str(error)) from None

    async def _ask(self, request: Any) -> bytes:
        answers: list[bytes] = []
        for method in reflection.METHODS:
            try:
                await self.stream(method, [request], answers.append)
                break
            except ServiceUnavailable:
                # A method that is not there may show as INTERNAL: grpcio was still sending when the answer came.
                if method is reflection.METHODS[-1]:
                    raise
        if not answers:
            raise BadResponse("the server's reflection does not answer")
        return answers[0]
