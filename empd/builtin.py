"""The connectors that come with empd: name in the mapping → `module:Class`. Nothing of them is imported here."""

from __future__ import annotations

import importlib.metadata

ENTRY_POINT_GROUP = "empd.connectors"

_SERVICE = "empd.connectors.service"

BUILT_IN_CONNECTORS: dict[str, str] = {
    "AIServiceConnector": f"{_SERVICE}.ai_service:AIServiceConnector",
    "CustomWebSocketConnector": f"{_SERVICE}.custom_websocket:CustomWebSocketConnector",
    "KServeConnector": f"{_SERVICE}.kserve:KServeConnector",
    "PythonConnector": f"{_SERVICE}.python_callable:PythonConnector",
    "RestAsyncConnector": f"{_SERVICE}.rest:RestAsyncConnector",
    "RestStreamConnector": f"{_SERVICE}.rest_stream:RestStreamConnector",
    "RestSyncConnector": f"{_SERVICE}.rest:RestSyncConnector",
    "SSEConnector": f"{_SERVICE}.rest_stream:SSEConnector",
    "SimulationWebsocketConnector": f"{_SERVICE}.simulation_websocket:SimulationWebsocketConnector",
    "SimulationHttpConnector": f"{_SERVICE}.simulation_http:SimulationHttpConnector",
    "SimulationConnector": f"{_SERVICE}.simulation:SimulationConnector",
    "A1111BatchConnector": f"{_SERVICE}.a1111.batch:A1111BatchConnector",
    "A1111CloudConnector": f"{_SERVICE}.a1111.cloud:A1111CloudConnector",
    "A1111LocalConnector": f"{_SERVICE}.a1111.local:A1111LocalConnector",
    "A1111RestConnector": f"{_SERVICE}.a1111.rest:A1111RestConnector",
    "A1111WebSocketConnector": f"{_SERVICE}.a1111.live:A1111WebSocketConnector",
    "ComfyUIAdvancedConnector": f"{_SERVICE}.comfyui.advanced:ComfyUIAdvancedConnector",
    "ComfyUIBatchConnector": f"{_SERVICE}.comfyui.batch:ComfyUIBatchConnector",
    "ComfyUILocalConnector": f"{_SERVICE}.comfyui.local:ComfyUILocalConnector",
    "ComfyUIRemoteConnector": f"{_SERVICE}.comfyui.remote:ComfyUIRemoteConnector",
    "ComfyUIWebSocketConnector": f"{_SERVICE}.comfyui.local:ComfyUIWebSocketConnector",
    "OpenAIChatConnector": f"{_SERVICE}.openai.chat:OpenAIChatConnector",
    "OpenAITextConnector": f"{_SERVICE}.openai.chat:OpenAITextConnector",
    "OpenAIVisionConnector": f"{_SERVICE}.openai.chat:OpenAIVisionConnector",
    "OpenAIImageConnector": f"{_SERVICE}.openai.images:OpenAIImageConnector",
    "OpenAIText2ImgConnector": f"{_SERVICE}.openai.text2img:OpenAIText2ImgConnector",
    "OpenAIImg2ImgConnector": f"{_SERVICE}.openai.text2img:OpenAIImg2ImgConnector",
    "OpenAIResponsesConnector": f"{_SERVICE}.openai.responses:OpenAIResponsesConnector",
    "OpenAIEmbeddingsConnector": f"{_SERVICE}.openai.embeddings:OpenAIEmbeddingsConnector",
    "OpenAITranscriptionConnector": f"{_SERVICE}.openai.audio:OpenAITranscriptionConnector",
    "OpenAISpeechConnector": f"{_SERVICE}.openai.audio:OpenAISpeechConnector",
}


def installed_connectors() -> dict[str, str]:
    """Those that installed packages offer by the entry point group `empd.connectors`: name → `module:Class`."""
    return {point.name: point.value for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}
