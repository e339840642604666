"""What the mapping says of a WebSocket service: its messages, the places in them, its words."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from empd.connectors.protocol.dialect import JobIds
from empd.connectors.protocol.socket_service import WebSocketConfig


class Messages(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What is sent; null: the service has no such message. Only `job` may name the payload; `login` and `heartbeat`
    name nothing."""

    job: Any
    cancel: Any = None
    query: Any = None
    login: Any = None
    heartbeat: Any = None


class Places(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """JSON pointers into the service's messages. `reference`: where its acknowledgement has our id."""

    type: str = "/type"
    id: str = "/id"
    reference: str = "/reference"
    progress: str = "/progress"
    message: str = "/message"
    result: str = "/result"
    error: str = "/error"


class WordsOf(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The service's words for each kind of message; `unknown`: it does not know the job it was asked for."""

    submitted: tuple[str, ...] = ()
    progress: tuple[str, ...] = ("progress",)
    complete: tuple[str, ...] = ("complete", "completed", "done", "result")
    error: tuple[str, ...] = ("error", "failed")
    cancelled: tuple[str, ...] = ("cancelled", "canceled")
    heartbeat: tuple[str, ...] = ("ping", "pong", "heartbeat")
    connection: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ("unknown",)


class CustomWebSocketConfig(WebSocketConfig, kw_only=True):
    """`job_ids`: the service takes our id (`ours`), or has its own and names ours in an acknowledgement (`reference`),
    or names no other there (`turn`). `progress_scale`: what stands for all of it (100 for percent)."""

    messages: Messages
    places: Places = Places()
    words: WordsOf = WordsOf()
    job_ids: JobIds = JobIds.OURS
    progress_scale: Annotated[float, msgspec.Meta(gt=0)] = 1.0
