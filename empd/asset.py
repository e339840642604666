"""Assets: the files that jobs make. What a connector gives to be saved, and what a result says of it afterwards."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable

import msgspec

from empd.errors import EmpdError, FailureClass

AssetContent = bytes | bytearray | memoryview | str | os.PathLike[str] | AsyncIterable[bytes]
"""What can be saved: bytes, base64 or a data URL (str), a file (a path object), or a stream of chunks."""


class AssetRef(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One saved asset, as a result carries it: metadata and where it is, never its bytes.

    `name` is its key in the store, `output` its index among the job's outputs, `url` where its bytes are (for the
    local store a path of the daemon's HTTP API). Not saved because the payload said `"save_assets": false`:
    `provider` is empty and `url` None; the metadata holds all the same.
    """

    name: str
    media_type: str
    size_bytes: int
    sha256: str
    output: int = 0
    provider: str = ""
    url: str | None = None
    cdn_url: str | None = None


class AssetFailed(EmpdError):
    """An asset could not be saved. `failure` is its class, `retry` whether another attempt may help.

    `upstream`: the store or the disk is at fault, not the job.
    """

    def __init__(
        self,
        failure: FailureClass,
        message: str,
        *,
        retry: bool = True,
        upstream: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message
        self.retry = retry
        self.upstream = upstream
        self.retry_after_s = retry_after_s
