"""Assets: the files that jobs make. What a connector gives to be saved, and what a result says of it afterwards."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable
from typing import Annotated, Any, BinaryIO, Literal

import msgspec

from empd.errors import EmpdError, FailureClass

AssetContent = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO | AsyncIterable[bytes]
"""What can be saved: bytes, base64 or a data URL (str), a file (a path object, or open for reading), or a
stream of chunks."""


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


FOLDER_PATTERN = r"^([\w()+@=,~-][\w.()+@=,~ -]*(/[\w()+@=,~-][\w.()+@=,~ -]*)*)?$"
"""Folders that assets may be put under: no part of it is hidden, or leads upward."""


def _meta(text: str, accepted: str = "", **constraints: Any) -> msgspec.Meta:
    return msgspec.Meta(description=text, extra={"accepted": accepted} if accepted else None, **constraints)


class AssetConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where assets are kept: an entry under `assets` of the service mapping. Holds secrets: never show it whole."""

    provider: Annotated[
        Literal["local", "azure"], _meta("local: state_dir/assets, served under /v1/assets/. azure: Blob Storage.")
    ] = "local"
    prefix: Annotated[
        str,
        _meta(
            "The folder in the store.",
            accepted="folders of letters, digits and -_.()+@=,~ with / between, none beginning with a dot",
            pattern=FOLDER_PATTERN,
        ),
    ] = ""
    container: Annotated[str, _meta("Azure: the blob container; it must exist.")] = ""
    account: Annotated[str, _meta("Azure: the storage account's name.")] = ""
    account_url: Annotated[str, _meta("Azure: the blob endpoint, where it does not follow from account.")] = ""
    connection_string: Annotated[str, _meta("Azure: in place of account and credentials.")] = ""
    key: Annotated[str, _meta("Azure: an account key. Without key and sas: the machine's managed identity.")] = ""
    sas: Annotated[str, _meta("Azure: a shared access signature that may read, write, list and delete.")] = ""
    retries: Annotated[int, _meta("Azure: further tries of one request, with back-off.", ge=0, le=20)] = 5
    cdn_url: Annotated[str, _meta("Where the public finds the assets: the name is appended.")] = ""
    cdn_check: Annotated[bool, _meta("A result waits until the CDN shows its assets.")] = False
    cdn_attempts: Annotated[int, _meta("How often the CDN is asked.", ge=1, le=1000)] = 30
    cdn_interval_s: Annotated[float, _meta("First wait between two questions; it grows.", ge=0)] = 2.0

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown."""
        parts = (part.partition("=")[::2] for part in self.connection_string.split(";"))
        inner = [value for name, value in parts if name in ("AccountKey", "SharedAccessSignature")]
        return tuple(value for value in (self.key, self.sas.lstrip("?"), self.connection_string, *inner) if value)

    @property
    def place(self) -> str:
        """Which store it is, without secrets."""
        if self.provider == "local":
            return self.provider
        told = dict(part.partition("=")[::2] for part in self.connection_string.split(";"))
        account = self.account_url.partition("?")[0] or self.account or told.get("AccountName", "")
        return f"{self.provider} {account}/{self.container}"

    def problem(self) -> tuple[str, str] | None:
        """The field, and what is wrong with it beside the others; None: nothing."""
        if self.provider == "local":
            return None
        if not self.container:
            return "container", "missing; accepted: the name of a blob container"
        if bool(self.connection_string) == bool(self.account or self.account_url):
            return "account", "accepted: account, account_url (or both), or a connection_string alone"
        if sum(map(bool, (self.key, self.sas, self.connection_string))) > 1:
            return "key", "accepted: at most one of key, sas and connection_string"
        return None


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
