"""Pictures in three ways, one after the other: a background response that is polled, a streamed response with partial
pictures, and the images API. The result says which one served."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from empd.connectors.base import ConnectorConfig
from empd.connectors.context import Context, JobView
from empd.connectors.failures import BadResponse, ConnectorError, InvalidInput, ServiceTimeout, ServiceUnavailable
from empd.connectors.protocol.http_poll import SubmitAndPoll
from empd.connectors.protocol.http_response import HTTPResponse
from empd.connectors.service.openai.images import FACTS, ImageCalls, ImageRequest, Pictures, prompt_of
from empd.connectors.service.openai.inputs import data_url, is_address, listed
from empd.connectors.service.openai.responses import OpenAIResponsesConnector, ResponsesConfig
from empd.errors import FailureClass as Failure

Step = Literal["background", "streaming", "direct"]
STEPS: tuple[Step, ...] = ("background", "streaming", "direct")
NEXT_STEP = (Failure.UNAVAILABLE, Failure.TIMEOUT, Failure.BAD_RESPONSE, Failure.NOT_FOUND, Failure.INTERNAL)
"""Failures of one way that say nothing of the next. A refusal or a bad key holds for all."""

_TOOL = (*FACTS, "moderation", "output_compression", "input_fidelity")


class Text2ImgConfig(ResponsesConfig):
    """`model` makes the response, `image_model` the picture; a job may name others. Each step has `step_limit_s`."""

    image_model: str = "gpt-image-1"
    steps: tuple[Step, ...] = STEPS
    step_limit_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    partial_images: Annotated[int, msgspec.Meta(ge=0, le=3)] = 2


class OpenAIText2ImgConnector(OpenAIResponsesConnector, ImageCalls):
    """`{"prompt": …, "size", "quality", "background", "output_format"}`; the result has `assets` and `served_by`."""

    connector_id = "openai_text2img"
    Config: ClassVar[type[ConnectorConfig]] = Text2ImgConfig
    config: Text2ImgConfig

    async def process(self, job: JobView, context: Context) -> Any:
        """Step after step, until one serves. Raises what the last one says, with all of them as evidence."""
        await context.load()
        failed: list[tuple[Step, ConnectorError]] = []
        for step in self.config.steps:
            try:
                async with asyncio.timeout(self.config.step_limit_s):
                    found, model = await self._step(step, job, context)
            except TimeoutError:
                failed.append((step, ServiceTimeout(f"no picture within step_limit_s ({self.config.step_limit_s:g})")))
            except ConnectorError as error:
                if error.failure not in NEXT_STEP or context.cancelled:
                    raise
                failed.append((step, error))
            else:
                # Not within the `try`: where nothing can be saved, another picture would only cost once more.
                return await self.saved(found, context, model=model, served_by=step)
            await self._give_up(context)
            context.log(f"no picture by way of {step}", reason=failed[-1][1].message)
        raise _combined(failed)

    async def _step(self, step: Step, job: JobView, context: Context) -> tuple[Pictures, str]:
        """The pictures of one way, and the model that made them."""
        if step == "background":
            found: Pictures = await SubmitAndPoll.process(self, job, context)
            return found, self._image_model(context.payload)
        if step == "streaming":
            async with self.paid(context):
                response, request_id = await self.listen(self._tool_request(context.payload), context)
            return self._pictures_of(response, request_id), self._image_model(context.payload)
        request = self._direct_request(context.payload)
        async with self.paid(context):
            return await self.pictures(request, context), request.parameters["model"]

    async def parse_response(self, response: HTTPResponse, job: JobView, context: Context) -> Any:
        """The pictures of a background response."""
        return self._pictures_of(response.json(), response.headers.get("x-request-id", ""))

    def _pictures_of(self, response: dict[str, Any], request_id: str) -> Pictures:
        output = self.answer_of(response)
        if not output.pictures:
            raise BadResponse("the answer has no picture", evidence=output.text)
        return Pictures(output.pictures, response, request_id)

    async def _give_up(self, context: Context) -> None:
        """What may still run upstream is stopped, so that no picture is paid for twice."""
        handle = context.upstream.handle
        if handle is None or not handle.id or handle.ended:
            return
        try:
            await self.interrupt(handle.id, context)
        except ConnectorError as error:
            context.log("the response could not be cancelled", upstream_id=handle.id, reason=error.message)
        await context.upstream.ended()

    def build_request_payload(self, job: JobView, context: Context) -> dict[str, Any]:
        """The response with its image tool, to run in the background."""
        return {**self._tool_request(context.payload), "background": True, "store": True}

    def _tool_request(self, payload: Any) -> dict[str, Any]:
        prompt = prompt_of(payload)
        tool = {name: payload[name] for name in _TOOL if name in payload}
        tool |= {"type": "image_generation", "model": self._image_model(payload)}
        if self.config.partial_images:
            tool["partial_images"] = self.config.partial_images
        model = payload.get("model") or self.config.model or self.default_model
        asked = self.input_of(prompt, payload)
        return {"model": model, "input": asked, "tools": [tool], "tool_choice": {"type": "image_generation"}}

    def _direct_request(self, payload: Any) -> ImageRequest:
        if any(is_address(picture) for picture in listed(payload.get("images", payload.get("image")))):
            raise ServiceUnavailable("the images API takes pictures only as files, not by their address")
        request = self.image_request(payload, "partial_images", "image_model")
        return request._replace(parameters={**request.parameters, "model": self._image_model(payload)})

    def _image_model(self, payload: dict[str, Any]) -> str:
        return str(payload.get("image_model") or self.config.image_model)

    def input_of(self, prompt: str, payload: Any) -> Any:
        """The response's `input`."""
        return prompt


class OpenAIImg2ImgConnector(OpenAIText2ImgConnector):
    """`{"prompt": …, "images": [URL, data URL, base64 or bytes, …]}`: pictures made from pictures."""

    connector_id = "openai_img2img"

    def input_of(self, prompt: str, payload: Any) -> Any:
        """The prompt and the pictures as the service wants to have them: plain addresses, each with a `detail`."""
        pictures = listed(payload.get("images", payload.get("image")))
        if not pictures:
            raise InvalidInput("images is missing: give at least one picture")
        parts = [
            {"type": "input_image", "image_url": data_url(picture, f"images[{i}]"), "detail": "auto"}
            for i, picture in enumerate(pictures)
        ]
        return [{"role": "user", "content": [{"type": "input_text", "text": prompt}, *parts]}]


def _combined(failed: list[tuple[Step, ConnectorError]]) -> ConnectorError:
    step, last = failed[-1]
    lines = [f"{name}: {error.failure.value}: {error.message}\n{error.evidence}".rstrip() for name, error in failed]
    last.evidence = "\n".join(lines)
    last.message = f"no way to a picture served, the last ({step}) said: {last.message}"
    return last
