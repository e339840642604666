"""Chat completions: conversations, single prompts, and questions about pictures, streamed.

The tokens arrive as partial results. What the job's payload holds beyond `prompt`, `system_prompt` and `images` goes to
the service as it is: `messages`, `tools`, `response_format`, `temperature`, …
"""

from __future__ import annotations

from typing import Any, ClassVar

from empd.connectors.base import ReportsProgress, Result
from empd.connectors.context import Context, JobView
from empd.connectors.failures import BadResponse, InvalidInput, RefusedByService
from empd.connectors.service.openai.api import OpenAIConnector, log_of, usage_of
from empd.connectors.service.openai.inputs import data_url, listed
from empd.connectors.service.openai.transcript import Transcript

DONE = "[DONE]"
PATH = "/chat/completions"
_PARTIAL_EVERY_S = 0.1


class OpenAIChatConnector(OpenAIConnector, ReportsProgress):
    """`{"messages": […]}` or `{"prompt": …, "system_prompt": …}`; the result has `text`, `finish_reason` and
    `tool_calls`."""

    connector_id = "openai_chat"
    default_model: ClassVar[str] = "gpt-4.1"

    async def process(self, job: JobView, context: Context) -> Any:
        """One completion. With `"stream": false` in the payload it comes in one piece."""
        asked = self.request_of(await context.load())
        async with self.paid(context):
            if asked.get("stream") is False:
                response = await self.request("POST", PATH, context, json=asked)
                found, request_id = Transcript.of(response.json()), response.headers.get("x-request-id", "")
            else:
                found, request_id = await self._listen({**asked, "stream": True}, context)
        usage = usage_of(found.usage)
        self.note(context, log_of(found.model or asked["model"], request_id, usage))
        return Result(_result(found), usage or None)

    def request_of(self, payload: Any) -> dict[str, Any]:
        """The request of a job. Raises InvalidInput."""
        asked = self.parameters(payload, "prompt", "system_prompt", "images", "detail")
        if "messages" not in asked:
            asked["messages"] = self.messages_of(payload)
        if not isinstance(asked["messages"], list) or not asked["messages"]:
            raise InvalidInput("messages must be a list of at least one message")
        return asked

    def messages_of(self, payload: dict[str, Any]) -> list[dict[str, Any]]:
        """The conversation of a payload that gives a prompt. Raises InvalidInput."""
        prompt = payload.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise InvalidInput("the payload must have messages, or a prompt")
        system = payload.get("system_prompt")
        before = [{"role": "system", "content": system}] if system else []
        parts = [
            {
                "type": "image_url",
                "image_url": {"url": data_url(image, f"images[{i}]"), "detail": payload.get("detail", "auto")},
            }
            for i, image in enumerate(listed(payload.get("images")))
        ]
        content = [{"type": "text", "text": prompt}, *parts] if parts else prompt
        return [*before, {"role": "user", "content": content}]

    async def _listen(self, asked: dict[str, Any], context: Context) -> tuple[Transcript, str]:
        # Without it the usage of a stream is never told.
        asked.setdefault("stream_options", {"include_usage": True})
        limit = asked.get("max_completion_tokens") or asked.get("max_tokens") or 0
        found, told_s = Transcript(), 0.0
        async with self.stream("POST", PATH, context, json=asked) as stream:
            async for event in stream.events():
                if event.data == DONE:
                    break
                self._take(found, event.data)
                now_s = context.clock()
                if found.chunks and now_s - told_s >= _PARTIAL_EVERY_S:
                    told_s = now_s
                    context.partial({"text": found.text})
                    fraction = min(0.99, found.chunks / limit) if limit else context.fraction
                    context.progress(fraction, f"{found.chunks} tokens")
            if found.finish_reason is None:
                raise BadResponse("the stream ended before its answer did")
            return found, stream.headers.get("x-request-id", "")

    def _take(self, found: Transcript, data: str) -> None:
        chunk = self.event_of(data)
        found.add(chunk)


class OpenAITextConnector(OpenAIChatConnector):
    """Text from a prompt."""

    connector_id = "openai_text"
    default_model: ClassVar[str] = "gpt-4o-mini"


class OpenAIVisionConnector(OpenAIChatConnector):
    """Text about pictures: `{"prompt": …, "images": [URL, data URL, base64 or bytes, …]}`."""

    connector_id = "openai_vision"

    def messages_of(self, payload: dict[str, Any]) -> list[dict[str, Any]]:
        """As for a prompt; there must be a picture."""
        if not listed(payload.get("images")):
            raise InvalidInput("images is missing: give at least one picture")
        return super().messages_of(payload)


def _result(found: Transcript) -> dict[str, Any]:
    """What a job gets. Raises RefusedByService."""
    if found.refusal or found.finish_reason == "content_filter":
        raise RefusedByService(found.refusal or "the answer was stopped by the content filter", evidence=found.text)
    result: dict[str, Any] = {
        "text": found.text,
        "model": found.model,
        "finish_reason": found.finish_reason,
        "id": found.id,
    }
    if found.tool_calls:
        result["tool_calls"] = found.tool_calls
    return result
