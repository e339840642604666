"""The Responses API: any request it takes, in the background, streamed, or in one piece."""

from __future__ import annotations

from typing import Any, ClassVar

from empd.asset import AssetRef
from empd.connectors.base import ConnectorConfig, Result
from empd.connectors.context import Context, JobView
from empd.connectors.failures import BadResponse, InvalidInput, RefusedByService
from empd.connectors.protocol.http_poll import Status, SubmitAndPoll
from empd.connectors.protocol.http_response import HTTPResponse
from empd.connectors.service.openai.api import OpenAIConfig, OpenAIConnector, log_of, usage_of
from empd.connectors.service.openai.output import Output, read, standing

PATH = "/responses"


class ResponsesConfig(OpenAIConfig):
    """`save_text`: the text is saved as an asset too."""

    endpoint: str = PATH
    save_text: bool = False


class OpenAIResponsesConnector(OpenAIConnector, SubmitAndPoll):
    """`{"dynamic_json": {…}}` or the request itself: `input`, `tools`, `reasoning`, …

    It runs in the background, where a crash here loses nothing, unless the request says `"background": false` (one
    call) or `"stream": true` (text as partial results). The result has `text`, `status`, `assets` and `calls`; one that
    was cut at its length says `"status": "incomplete"` and why.
    """

    connector_id = "openai_responses"
    default_model: ClassVar[str] = "gpt-4.1"
    Config: ClassVar[type[ConnectorConfig]] = ResponsesConfig
    config: ResponsesConfig

    def build_request_payload(self, job: JobView, context: Context) -> dict[str, Any]:
        """The request. A background response is kept by the service until it is asked to forget it: `store`."""
        payload = context.payload
        if isinstance(payload, dict) and isinstance(payload.get("dynamic_json"), dict):
            payload = payload["dynamic_json"]
        asked = self.parameters(payload)
        if not asked.get("input") and not asked.get("prompt"):
            raise InvalidInput("input is missing")
        asked.setdefault("background", not asked.get("stream"))
        if asked["background"]:
            asked.setdefault("store", True)
        return asked

    async def process(self, job: JobView, context: Context) -> Any:
        """In the way that the request asks for."""
        await context.load()
        asked = self.build_request_payload(job, context)
        if asked.get("stream"):
            async with self.paid(context):
                found, request_id = await self.listen(asked, context)
            return await self.finish(found, request_id, context)
        if asked["background"]:
            return await super().process(job, context)
        async with self.paid(context):
            answer = await self.request("POST", PATH, context, json=asked)
        return await self.finish(answer.json(), answer.headers.get("x-request-id", ""), context)

    def parse_status(self, response: HTTPResponse, context: Context) -> Status:
        """Where a background response stands."""
        return standing(response.json(), self.verdicts)

    async def parse_response(self, response: HTTPResponse, job: JobView, context: Context) -> Any:
        """The result of a background response."""
        return await self.finish(response.json(), response.headers.get("x-request-id", ""), context)

    async def listen(self, asked: dict[str, Any], context: Context) -> tuple[dict[str, Any], str]:
        """A streamed response, to its end: the last response object, and the request's id. Raises ConnectorError."""
        text = ""
        async with self.stream("POST", PATH, context, json={**asked, "stream": True}) as stream:
            async for event in stream.events():
                body = self.event_of(event.data)
                match body.get("type"):
                    case "response.output_text.delta":
                        text += body.get("delta", "")
                        context.partial({"text": text})
                        context.progress(context.fraction, "writing")
                    case "response.image_generation_call.partial_image":
                        index = body.get("partial_image_index", 0)
                        context.partial({"partial_image": index, "b64_json": body.get("partial_image_b64")})
                        context.progress(context.fraction, f"picture {index + 1}")
                    case "response.completed" | "response.failed" | "response.incomplete":
                        response = body.get("response")
                        if isinstance(response, dict):
                            return response, stream.headers.get("x-request-id", "")
            raise BadResponse("the stream ended before its response did")

    def answer_of(self, response: dict[str, Any]) -> Output:
        """What a response that has ended says. Raises ConnectorError for one that failed, was refused, or lacks the
        picture that it began."""
        error = standing(response, self.verdicts).error
        if error is not None:
            raise error
        output = read(response)
        if output.refusal and not output.pictures:
            raise RefusedByService(output.refusal)
        if output.pictures_asked and not output.pictures:
            raise BadResponse("the service ended without the picture that it began", evidence=output.text)
        return output

    async def finish(self, response: dict[str, Any], request_id: str, context: Context) -> Result:
        """The job's result: what can be saved is saved, and no base64 is left in it. Raises ConnectorError."""
        output = self.answer_of(response)
        usage = usage_of(response.get("usage"))
        self.note(context, log_of(str(response.get("model", "")), request_id, usage))
        result: dict[str, Any] = {
            "text": output.text,
            "status": response.get("status"),
            "model": response.get("model"),
            "id": response.get("id"),
        }
        if response.get("status") == "incomplete":
            result["incomplete"] = (response.get("incomplete_details") or {}).get("reason", "")
        if output.calls:
            result["calls"] = output.calls
        assets = await self._save(output, context)
        if assets:
            result["assets"] = assets
        return Result(result, usage or None)

    async def _save(self, output: Output, context: Context) -> list[AssetRef]:
        saved = [await context.assets.save(picture, output=i) for i, picture in enumerate(output.pictures)]
        if self.config.save_text and output.text:
            saved.append(await context.assets.save(output.text.encode(), output=len(saved)))
        return saved
