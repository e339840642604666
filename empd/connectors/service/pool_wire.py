"""What a worker and a process of its pool say to each other: msgpack messages, each behind its length in 4 bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from empd.connectors.context import JobDetails
from empd.connectors.failures import ConnectorError
from empd.connectors.verdict import judge
from empd.errors import FailureClass
from empd.job import Cause

LENGTH_BYTES = 4
MESSAGE_BYTES_MAX = (1 << 32) - 1


class Message(msgspec.Struct, array_like=True):
    """Base of all messages."""


class Load(Message, tag=1):
    """First message to the process: what to import."""

    target: str
    options: dict[str, Any]
    python_path: list[str]
    secrets: list[str]
    parent_pid: int


class Job(Message, tag=2):
    """Do this one."""

    id: int
    epoch: int
    attempt: int
    details: JobDetails
    payload: bytes
    encoding: str
    started_ns: int
    timeout_s: float
    checkpoint: bytes | None
    instance: str = ""


class Answer(Message, tag=3):
    """Answer to `Ask`; `error` is not empty when it failed, and `failure` its verdict where it is not the state's."""

    version: int
    data: bytes
    error: str = ""
    failure: Failure | None = None


class Close(Message, tag=4):
    """Tear down and end."""


class Ready(Message, tag=16):
    """Loaded and set up, or not: with the reason."""

    is_async: bool
    reason: str = ""
    retry: bool = False


class Progress(Message, tag=17):
    """See Context.progress."""

    fraction: float
    message: str
    step: int
    steps: int


class PartialValue(Message, tag=18):
    """See Context.partial; `data` is msgpack."""

    data: bytes


class LogLine(Message, tag=19):
    """See Context.log."""

    text: str


class Ask(Message, tag=20):
    """`verb`: checkpoint (`key` is its doubt), state_get, state_set, or asset, asset_text, asset_path (`key` is its
    name). The process waits for the answer; that to an asset is its AssetRef as msgpack."""

    verb: str
    key: str = ""
    data: bytes = b""
    expected_version: int = 0
    output: int = 0
    metadata: dict[str, Any] | None = None


class Finished(Message, tag=21):
    """The job's value as msgpack."""

    data: bytes
    usage: dict[str, float] | None


class Failure(Message, tag=22):
    """The job's verdict, made where the exception was."""

    failure: str
    message: str
    retry: bool
    cause: int
    retry_after_s: float | None
    evidence: str


ToProcess = Load | Job | Answer | Close
FromProcess = Ready | Progress | PartialValue | LogLine | Ask | Finished | Failure

decode_to_process: Callable[[bytes], ToProcess] = msgspec.msgpack.Decoder(ToProcess).decode
decode_from_process: Callable[[bytes], FromProcess] = msgspec.msgpack.Decoder(FromProcess).decode
_pack = msgspec.msgpack.Encoder().encode


def encode(message: Message) -> bytes:
    """The message's length and bytes. Raises OverflowError when it is too long."""
    body = _pack(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def failure_of(error: BaseException) -> Failure:
    """An exception's verdict."""
    verdict = judge(error)
    return Failure(
        verdict.failure, verdict.message, verdict.retry, verdict.cause, verdict.retry_after_s, verdict.evidence
    )


def error_of(failure: Failure) -> ConnectorError:
    """The error that has this verdict."""
    return ConnectorError(
        failure.message,
        failure=FailureClass(failure.failure),
        retry=failure.retry,
        cause=Cause(failure.cause),
        retry_after_s=failure.retry_after_s,
        evidence=failure.evidence,
    )
