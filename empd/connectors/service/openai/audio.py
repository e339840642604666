"""Speech to text, and text to speech."""

from __future__ import annotations

from typing import Any, ClassVar

import aiohttp

from empd.connectors.base import ConnectorConfig, Result
from empd.connectors.context import Context, JobView
from empd.connectors.failures import BadResponse, InvalidInput
from empd.connectors.protocol.http_response import HTTPResponse, value_if_json
from empd.connectors.service.openai.api import OpenAIConfig, OpenAIConnector, log_of, usage_of
from empd.connectors.service.openai.inputs import binary, file_name

TRANSCRIPTIONS, SPEECH = "/audio/transcriptions", "/audio/speech"


class SpeechConfig(OpenAIConfig):
    """`voice` is for jobs that name none."""

    voice: str = "alloy"


class OpenAITranscriptionConnector(OpenAIConnector):
    """`{"audio": data URL, base64 or bytes}`, or the recording's bytes as the whole payload; the result has `text`."""

    connector_id = "openai_transcription"
    default_model: ClassVar[str] = "gpt-4o-transcribe"

    async def process(self, job: JobView, context: Context) -> Any:
        """One upload."""
        payload = await context.load()
        if isinstance(payload, bytes):
            payload = {"audio": payload}
        asked = self.parameters(payload, "audio")
        if "audio" not in payload:
            raise InvalidInput("audio is missing: a data URL, base64 or bytes")
        recording = binary(payload["audio"], "audio")

        def form() -> aiohttp.FormData:
            name, kind = file_name(recording, "audio")
            data = aiohttp.FormData()
            for key, value in asked.items():
                data.add_field(key, str(value))
            data.add_field("file", recording, filename=name, content_type=kind)
            return data

        async with self.paid(context):
            response = await self.request("POST", TRANSCRIPTIONS, context, data=form)
        return self._result(response, str(asked["model"]), context)

    def _result(self, response: HTTPResponse, model: str, context: Context) -> Result:
        body = response.value()
        if not isinstance(body, dict):  # response_format "text", "srt" and "vtt" are no JSON
            body = {"text": body.decode(errors="replace") if isinstance(body, bytes) else body}
        if not isinstance(body.get("text"), str):
            raise BadResponse("the answer has no text")
        usage = usage_of(body.pop("usage", None))
        self.note(context, log_of(model, response.headers.get("x-request-id", ""), usage))
        return Result({**body, "model": model}, usage or None)


class OpenAISpeechConnector(OpenAIConnector):
    """`{"input": text, "voice": …}`; the sound is saved, the result has its reference under `assets`."""

    connector_id = "openai_speech"
    default_model: ClassVar[str] = "gpt-4o-mini-tts"
    Config: ClassVar[type[ConnectorConfig]] = SpeechConfig
    config: SpeechConfig

    async def process(self, job: JobView, context: Context) -> Any:
        """One call; its answer goes to the store as it comes."""
        asked = self.parameters(await context.load())
        asked.setdefault("voice", self.config.voice)
        if not asked.get("input"):
            raise InvalidInput("input is missing: the text to speak")
        async with self.paid(context), self.stream("POST", SPEECH, context, json=asked) as stream:
            request_id = stream.headers.get("x-request-id", "")
            if "json" in stream.headers.get("Content-Type", ""):
                raise self.answer_failure(value_if_json(b"".join([chunk async for chunk in stream.chunks()])))
            saved = await context.assets.save(stream.chunks())
        self.note(context, log_of(str(asked["model"]), request_id, {}))
        return {"assets": [saved], "model": asked["model"]}
