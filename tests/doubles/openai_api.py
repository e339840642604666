"""A double of the OpenAI API: chat, images, Responses, embeddings and audio, as the published specification has them.

It judges requests as the service does (keys, retired models, parameters that an image model rejects), streams by
server-sent events, and fails on demand: `double.fail(path, …)`. What it was asked stands in `double.asked`.
Source: openai/openai-openapi 2.3.0; the official `openai` client is run against it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

from aiohttp import web

from empd.cli.demo.png import Picture, encode

KEY = "sk-double-key-of-the-tests"
RETIRED = {"dall-e-2", "dall-e-3"}
WEBP = base64.b64decode("UklGRhoAAABXRUJQVlA4TA0AAAAvAAAAEAcQERGIiP4HAA==")
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00\xff\xd9"
MP3 = b"ID3\x04\x00\x00\x00\x00\x00\x00" + bytes(64)
RATE_HEADERS = {
    "x-ratelimit-limit-requests": "500",
    "x-ratelimit-remaining-requests": "499",
    "x-ratelimit-reset-requests": "120ms",
}
IMAGE_KEYS = {
    "model", "prompt", "n", "size", "quality", "background", "output_format", "output_compression", "moderation",
    "stream", "partial_images", "user", "image", "mask", "input_fidelity",
}  # fmt: skip


class Failure(NamedTuple):
    """An answer instead of the real one. `cut_after`: the stream breaks off after so many events."""

    status: int = 500
    body: Any = None
    headers: dict[str, str] = {}
    cut_after: int | None = None
    delay_s: float = 0.0


BODY: web.RequestKey[Any] = web.RequestKey("body", object)
FAILURE: web.RequestKey[Any] = web.RequestKey("failure", object)


class Asked(NamedTuple):
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The service's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Refuse(Exception):
    """Ends a request with an error."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, kind, code)


def picture(text: str, output_format: str = "png") -> bytes:
    """A small picture whose colour depends on the text."""
    if output_format == "webp":
        return WEBP
    if output_format == "jpeg":
        return JPEG
    red, green, blue = (sum(text.encode()) * factor % 256 for factor in (3, 5, 7))
    return encode(Picture(8, 8, 3, [bytes((red, green, blue)) * 8] * 8))


class OpenAIDouble:
    """The service. `polls` is how often a background response is asked for before it ends; `ending` how it ends."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As new."""
        self.asked: list[Asked] = []
        self.responses: dict[str, dict[str, Any]] = {}
        self.cancelled: list[str] = []
        self.polls = 2
        self.ending: dict[str, Any] = {}
        self.event_delay_s = 0.0
        self.rate_headers = dict(RATE_HEADERS)
        self._failures: dict[str, deque[Failure]] = defaultdict(deque)
        self._numbers = itertools.count(1)
        self._left: dict[str, int] = {}
        self._by_key: dict[str, str] = {}

    def fail(self, path: str, status: int = 500, body: Any = None, times: int = 1, **more: Any) -> None:
        """The next `times` requests of `path` get this instead."""
        self._failures[path].extend([Failure(status, body, **more)] * times)

    def count(self, path: str, method: str = "POST") -> int:
        """How often `path` was asked."""
        return sum(asked.path == path and asked.method == method for asked in self.asked)

    def count_prefix(self, prefix: str, method: str) -> int:
        """How often paths that begin so were asked."""
        return sum(asked.path.startswith(prefix) and asked.method == method for asked in self.asked)

    def finish_all(self) -> None:
        """Every background response ends when it is next asked for."""
        self._left = dict.fromkeys(self._left, 1)

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[self._judge], client_max_size=64 << 20)
        app.add_routes(
            [
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/embeddings", self._embeddings),
                web.post("/v1/images/generations", self._images),
                web.post("/v1/images/edits", self._images),
                web.post("/v1/responses", self._create_response),
                web.get("/v1/responses/{id}", self._get_response),
                web.post("/v1/responses/{id}/cancel", self._cancel_response),
                web.post("/v1/audio/transcriptions", self._transcribe),
                web.post("/v1/audio/speech", self._speak),
            ]
        )
        return app

    @web.middleware
    async def _judge(self, request: web.Request, handler: Any) -> web.StreamResponse:
        body = await _body(request)
        self.asked.append(Asked(request.method, request.path, dict(request.headers), body))
        request[BODY] = body
        failures = self._failures[request.path]
        request[FAILURE] = failure = failures.popleft() if failures else None
        if failure is not None:
            await asyncio.sleep(failure.delay_s)
        headers = {**self.rate_headers, "x-request-id": f"req_{next(self._numbers)}"}
        if failure is not None and failure.cut_after is None:
            headers |= failure.headers
            if isinstance(failure.body, str):
                return web.Response(text=failure.body, status=failure.status, headers=headers)
            return web.json_response(failure.body, status=failure.status, headers=headers)
        try:
            if request.headers.get("Authorization") != f"Bearer {KEY}":
                raise Refuse(401, "Incorrect API key provided", code="invalid_api_key")
            if isinstance(body, dict) and body.get("model") in RETIRED:
                raise Refuse(404, f"The model '{body['model']}' does not exist", code="model_not_found")
            answer: web.StreamResponse = await handler(request)
        except Refuse as refusal:
            return web.json_response(refusal.body, status=refusal.status, headers=headers)
        if not answer.prepared:
            answer.headers.update(headers)
        return answer

    # --- chat, embeddings, audio -----------------------------------------------------------------------------------

    async def _models(self, request: web.Request) -> web.Response:
        data = [
            {"id": name, "object": "model", "created": 1, "owned_by": "openai"} for name in ("gpt-4.1", "gpt-image-1")
        ]
        return web.json_response({"object": "list", "data": data})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = request[BODY]
        if not body.get("messages"):
            raise Refuse(400, "Missing required parameter: 'messages'.")
        message: dict[str, Any] = {"role": "assistant", "content": _reply(body), "refusal": None}
        finish = "stop"
        if body.get("tools"):
            name = body["tools"][0]["function"]["name"]
            call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": '{"city": "Oslo"}'}}
            message |= {"content": None, "tool_calls": [call]}
            finish = "tool_calls"
        elif body.get("max_completion_tokens", body.get("max_tokens", 1000)) < 3:
            finish = "length"
        if "filtered" in json.dumps(body["messages"]):
            finish = "content_filter"
        head = {"id": f"chatcmpl-{next(self._numbers)}", "created": 1, "model": body["model"]}
        usage = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
        if not body.get("stream"):
            choices = [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}]
            return web.json_response({**head, "object": "chat.completion", "choices": choices, "usage": usage})

        async def chunks() -> AsyncIterator[str]:
            async def chunk(delta: dict[str, Any], reason: str | None = None) -> str:
                choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
                return json.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]})

            yield await chunk({"role": "assistant", "content": ""})
            for word in (message["content"] or "").split(" "):
                yield await chunk({"content": word + " "})
            for index, call in enumerate(message.get("tool_calls", ())):
                yield await chunk(
                    {"tool_calls": [{"index": index, **call, "function": {**call["function"], "arguments": ""}}]}
                )
                for part in ('{"city": ', '"Oslo"}'):
                    yield await chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
            yield await chunk({}, finish)
            if (body.get("stream_options") or {}).get("include_usage"):
                yield json.dumps({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
            yield "[DONE]"

        return await self._stream(request, ((None, data) async for data in chunks()))

    async def _embeddings(self, request: web.Request) -> web.Response:
        body = request[BODY]
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        data = [
            {"object": "embedding", "index": i, "embedding": [float(len(text)), 0.5]} for i, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        return web.json_response({"object": "list", "data": data, "model": body["model"], "usage": usage})

    async def _transcribe(self, request: web.Request) -> web.Response:
        form = request[BODY]
        if not isinstance(form.get("file"), bytes):
            raise Refuse(400, "Missing required parameter: 'file'.")
        usage = {"type": "tokens", "input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
        return web.json_response({"text": f"{len(form['file'])} bytes of sound", "usage": usage})

    async def _speak(self, request: web.Request) -> web.Response:
        if not request[BODY].get("voice"):
            raise Refuse(400, "Missing required parameter: 'voice'.")
        return web.Response(body=MP3, content_type="audio/mpeg")

    # --- images ----------------------------------------------------------------------------------------------------

    async def _images(self, request: web.Request) -> web.StreamResponse:
        body = request[BODY]
        edit = request.path.endswith("edits")
        unknown = set(body) - IMAGE_KEYS
        if unknown:
            raise Refuse(400, f"Unknown parameter: '{min(unknown)}'.", code="unknown_parameter")
        if not body.get("prompt"):
            raise Refuse(400, "Missing required parameter: 'prompt'.")
        if edit and not body.get("image"):
            raise Refuse(400, "Missing required parameter: 'image'.")
        if "forbidden" in body["prompt"]:
            raise Refuse(400, "Your request was rejected.", "image_generation_user_error", "moderation_blocked")
        output_format = body.get("output_format", "png")
        pictures = [picture(f"{body['prompt']}{i}", output_format) for i in range(int(body.get("n", 1)))]
        facts = {
            "background": body.get("background", "opaque"),
            "output_format": output_format,
            "quality": body.get("quality", "high"),
            "size": body.get("size", "1024x1024"),
        }
        usage = {
            "input_tokens": 10,
            "output_tokens": 40,
            "total_tokens": 50,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 0},
        }
        if str(body.get("stream", "")).lower() != "true":
            data = [{"b64_json": base64.b64encode(bytes_).decode()} for bytes_ in pictures]
            return web.json_response({"created": 1, "data": data, **facts, "usage": usage})
        kind = "image_edit" if edit else "image_generation"

        async def events() -> AsyncIterator[tuple[str, str]]:
            for index in range(int(body.get("partial_images", 0))):
                partial = base64.b64encode(picture(f"partial{index}", output_format)).decode()
                event = {"type": f"{kind}.partial_image", "partial_image_index": index, "b64_json": partial}
                yield event["type"], json.dumps({**event, "created_at": 1, **facts})
            final = base64.b64encode(pictures[0]).decode()
            event = {"type": f"{kind}.completed", "b64_json": final, "created_at": 1, "usage": usage}
            yield event["type"], json.dumps({**event, **facts})

        return await self._stream(request, events())

    # --- Responses -------------------------------------------------------------------------------------------------

    async def _create_response(self, request: web.Request) -> web.StreamResponse:
        body = request[BODY]
        _judge_input(body.get("input"))
        key = request.headers.get("Idempotency-Key", "")
        known = self._by_key.get(key)
        if known is not None:
            return web.json_response(self.responses[known])
        identity = f"resp_{next(self._numbers)}"
        background = bool(body.get("background"))
        response = {
            "id": identity,
            "object": "response",
            "created_at": 1,
            "model": body["model"],
            "status": "queued" if background else "in_progress",
            "background": background,
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": body.get("tools", []),
            "instructions": None,
            "metadata": {},
            "temperature": 1.0,
            "top_p": 1.0,
        }
        self.responses[identity] = response
        if key:
            self._by_key[key] = identity
        self._left[identity] = 1 << 30 if "endless" in str(body["input"]) else self.polls
        if body.get("stream"):
            return await self._stream(request, self._response_events(response, body))
        if not background:
            self._end(response, body)
        else:
            response["asked"] = body
        return web.json_response(_public(response))

    async def _response_events(self, response: dict[str, Any], body: dict[str, Any]) -> AsyncIterator[tuple[str, str]]:
        number = itertools.count()

        def event(kind: str, **fields: Any) -> tuple[str, str]:
            return kind, json.dumps({"type": kind, "sequence_number": next(number), **fields})

        yield event("response.created", response=_public(response))
        yield event("response.in_progress", response=_public(response))
        if any(tool.get("type") == "image_generation" for tool in body.get("tools", ())):
            for index in range(2):
                part = base64.b64encode(picture(f"partial{index}")).decode()
                yield event(
                    "response.image_generation_call.partial_image",
                    item_id="ig_1",
                    output_index=0,
                    partial_image_index=index,
                    partial_image_b64=part,
                )
        else:
            for word in _reply(body).split(" "):
                yield event(
                    "response.output_text.delta",
                    item_id="m",
                    output_index=0,
                    content_index=0,
                    delta=f"{word} ",
                    logprobs=[],
                )
        self._end(response, body)
        yield event(f"response.{response['status']}", response=_public(response))

    async def _get_response(self, request: web.Request) -> web.Response:
        response = self.responses.get(request.match_info["id"])
        if response is None:
            raise Refuse(404, f"Response with id '{request.match_info['id']}' not found.")
        if response["status"] in ("queued", "in_progress"):
            self._left[response["id"]] -= 1
            response["status"] = "in_progress"
            if self._left[response["id"]] <= 0:
                self._end(response, response["asked"])
        return web.json_response(_public(response))

    async def _cancel_response(self, request: web.Request) -> web.Response:
        response = self.responses.get(request.match_info["id"])
        if response is None:
            raise Refuse(404, "Response not found.")
        if not response["background"]:
            raise Refuse(400, "Only responses created with background=true can be cancelled.")
        if response["status"] in ("queued", "in_progress"):
            response["status"] = "cancelled"
            self.cancelled.append(response["id"])
        return web.json_response(_public(response))

    def _end(self, response: dict[str, Any], body: dict[str, Any]) -> None:
        """The response's end: as `ending` says, else completed with text, or with a picture for the image tool."""
        output: list[dict[str, Any]] = []
        if any(tool.get("type") == "image_generation" for tool in body.get("tools", ())):
            result = base64.b64encode(picture(json.dumps(body["input"]))).decode()
            output.append({"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": result})
        else:
            content = [{"type": "output_text", "text": _reply(body), "annotations": []}]
            output.append(
                {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}
            )
        usage = {
            "input_tokens": 5,
            "output_tokens": 7,
            "total_tokens": 12,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        response.update({"status": "completed", "output": output, "usage": usage, **self.ending})

    async def _stream(self, request: web.Request, events: AsyncIterator[tuple[str | None, str]]) -> web.StreamResponse:
        headers = {
            **self.rate_headers,
            "x-request-id": f"req_{next(self._numbers)}",
            "Content-Type": "text/event-stream",
        }
        answer = web.StreamResponse(headers=headers)
        await answer.prepare(request)
        failure: Failure | None = request[FAILURE]
        sent = 0
        async for kind, data in events:
            if failure is not None and sent == failure.cut_after:
                if failure.body is not None:
                    await answer.write(f"data: {json.dumps(failure.body)}\n\n".encode())
                assert request.transport is not None
                request.transport.close()
                return answer
            await answer.write((f"event: {kind}\n" if kind else "").encode() + f"data: {data}\n\n".encode())
            sent += 1
            await asyncio.sleep(self.event_delay_s)
        await answer.write_eof()
        return answer


def _public(response: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in response.items() if name != "asked"}


def _judge_input(asked: Any) -> None:
    if not asked:
        raise Refuse(400, "Missing required parameter: 'input'.")
    parts = (
        [part for item in asked if isinstance(item, dict) for part in _parts(item)] if isinstance(asked, list) else []
    )
    for part in parts:
        if part.get("type") == "input_image" and not (isinstance(part.get("image_url"), str) and part.get("detail")):
            raise Refuse(400, "Invalid 'input_image': 'image_url' is a string and 'detail' is required.")


def _parts(item: dict[str, Any]) -> list[dict[str, Any]]:
    content = item.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _reply(body: dict[str, Any]) -> str:
    """What a model that only repeats would answer."""
    asked = body.get("messages", body.get("input"))
    if isinstance(asked, str):
        return f"you said {asked}"
    content = asked[-1].get("content", "")
    if isinstance(content, list):
        texts = [part["text"] for part in content if "text" in part]
        images = sum("image" in part.get("type", "") for part in content)
        return f"you said {' '.join(texts)} with {images} image"
    return f"you said {content}"


async def _body(request: web.Request) -> Any:
    if request.content_type == "application/json":
        raw = await request.read()
        return json.loads(raw) if raw else None
    if request.content_type != "multipart/form-data":
        return None
    form: dict[str, Any] = {}
    for name, value in (await request.post()).items():
        plain = value if isinstance(value, str) else value.file.read()
        key = name.removesuffix("[]")
        form[key] = [*form.get(key, []), plain] if name.endswith("[]") else plain
    return form


@contextlib.contextmanager
def serving(double: OpenAIDouble) -> Iterator[str]:
    """Runs the double in a thread of its own; yields its base URL (with `/v1`)."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(double.app(), access_log=None, shutdown_timeout=1.0)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return int(runner.addresses[0][1])

    port = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, name="openai-double", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()
