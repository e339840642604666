"""The images API: pictures from a prompt, and pictures changed by one.

Only what the present models take: they always answer base64, and know neither `response_format` nor `style`.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import aiohttp

from empd.connectors.base import ConnectorConfig, ReportsProgress, Result
from empd.connectors.context import Context, JobView
from empd.connectors.failures import BadResponse, InvalidInput
from empd.connectors.service.openai.api import OpenAIConfig, OpenAIConnector, log_of, usage_of
from empd.connectors.service.openai.inputs import binary, file_name, listed

GENERATIONS, EDITS = "/images/generations", "/images/edits"
FACTS = ("size", "quality", "background", "output_format")
_QUALITIES = {"standard": "medium", "hd": "high"}  # the names of the models before


class ImageRequest(NamedTuple):
    """What is asked for: parameters as the service names them, pictures to change, and where they may be changed."""

    parameters: dict[str, Any]
    pictures: list[bytes]
    mask: bytes | None = None

    @property
    def path(self) -> str:
        """Where it goes."""
        return EDITS if self.pictures else GENERATIONS

    def form(self, **more: Any) -> aiohttp.FormData:
        """As the edits take it."""
        data = aiohttp.FormData()
        for key, value in {**self.parameters, **more}.items():
            data.add_field(key, str(value).lower() if isinstance(value, bool) else str(value))
        for i, picture in enumerate(self.pictures):
            name, kind = file_name(picture, f"image{i}")
            data.add_field("image[]", picture, filename=name, content_type=kind)
        if self.mask is not None:
            data.add_field("mask", self.mask, filename="mask.png", content_type="image/png")
        return data


class Pictures(NamedTuple):
    """What came: base64, and what the service says of it."""

    pictures: list[str]
    body: dict[str, Any]
    request_id: str


def prompt_of(payload: Any) -> str:
    """The text of a job for a picture. Raises InvalidInput."""
    prompt = (payload.get("prompt") or payload.get("description")) if isinstance(payload, dict) else None
    if not isinstance(prompt, str) or not prompt:
        raise InvalidInput("prompt is missing")
    return prompt


class ImageCalls(OpenAIConnector, ReportsProgress):
    """The two calls of the images API, for connectors that make pictures."""

    def image_request(self, payload: Any, *own: str) -> ImageRequest:
        """A job's request. Raises InvalidInput."""
        asked = self.parameters(payload, "images", "image", "mask", "description", "response_format", *own)
        asked["prompt"] = prompt_of(payload)
        if "quality" in asked:
            asked["quality"] = _QUALITIES.get(asked["quality"], asked["quality"])
        given = listed(payload.get("images", payload.get("image")))
        mask = payload.get("mask")
        pictures = [binary(picture, f"images[{i}]") for i, picture in enumerate(given)]
        return ImageRequest(asked, pictures, None if mask is None else binary(mask, "mask"))

    async def pictures(self, request: ImageRequest, context: Context) -> Pictures:
        """In one piece."""
        context.progress(context.fraction, "asked for")
        if request.pictures:
            response = await self.request("POST", request.path, context, data=request.form)
        else:
            response = await self.request("POST", request.path, context, json=request.parameters)
        body = response.json()
        try:
            found = [str(entry["b64_json"]) for entry in body["data"]]
        except (KeyError, TypeError):
            raise BadResponse("the answer has no pictures") from None
        return Pictures(found, body, response.headers.get("x-request-id", ""))

    async def pictures_streamed(self, request: ImageRequest, context: Context) -> Pictures:
        """As they become clear: earlier states are partial results."""
        partials = int(request.parameters.get("partial_images") or 0)
        found: list[str] = []
        if request.pictures:
            stream = self.stream("POST", request.path, context, data=lambda: request.form(stream=True))
        else:
            stream = self.stream("POST", request.path, context, json={**request.parameters, "stream": True})
        async with stream as answer:
            async for event in answer.events():
                body = self.event_of(event.data)
                picture = body.get("b64_json")
                if not isinstance(picture, str):
                    continue
                if str(body.get("type", "")).endswith(".completed"):
                    found.append(picture)
                    if len(found) == int(request.parameters.get("n") or 1):
                        return Pictures(found, body, answer.headers.get("x-request-id", ""))
                else:
                    index = int(body.get("partial_image_index") or 0)
                    context.partial({"partial_image": index, "b64_json": picture})
                    context.progress((index + 1) / (partials + 1) if partials else 0.5, f"picture {index + 1}")
            raise BadResponse("the stream ended before its pictures did")

    async def saved(self, found: Pictures, context: Context, **more: Any) -> Result:
        """The job's result, once all pictures are saved."""
        assets = [await context.assets.save(picture, output=i) for i, picture in enumerate(found.pictures)]
        facts = {name: found.body[name] for name in FACTS if name in found.body}
        usage = usage_of(found.body.get("usage"))
        self.note(context, log_of(str(more.get("model", "")), found.request_id, usage))
        return Result({"assets": assets, **facts, **more}, usage or None)


class OpenAIImageConnector(ImageCalls):
    """`{"prompt": …, "size", "quality", "background", "output_format", "n", …}`; with `images` (and `mask`) they are
    changed, with `partial_images` earlier states come as partial results."""

    connector_id = "openai_image"
    default_model: ClassVar[str] = "gpt-image-1"
    Config: ClassVar[type[ConnectorConfig]] = OpenAIConfig

    async def process(self, job: JobView, context: Context) -> Any:
        """One call."""
        request = self.image_request(await context.load())
        call = self.pictures_streamed if request.parameters.get("partial_images") else self.pictures
        async with self.paid(context):
            found = await call(request, context)
        return await self.saved(found, context, model=request.parameters["model"])
