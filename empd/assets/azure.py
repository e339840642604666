"""Assets in Azure Blob Storage, through azure-storage-blob's asynchronous client on aiohttp.

Content of one block is one Put Blob. What is longer is staged in blocks, a few at a time, under a name of this attempt
alone (its own name needs the hash, which is known at the end), committed there, copied to its name inside the account,
and the first name deleted: so blocks of two attempts never mix, and nobody sees half a file.

Nothing is overwritten blindly: If-None-Match first, then If-Match with the ETag of the blob whose mark was looked at.
Blobs made of blocks have no Content-MD5 of the service's; size and SHA-256 stand in the metadata.
"""

from __future__ import annotations

import asyncio
import contextlib
import urllib.parse
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any, NamedTuple, Self

from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseTimeoutError,
)
from azure.storage.blob import BlobBlock, ContentSettings
from azure.storage.blob.aio import BlobClient, BlobServiceClient, ContainerClient, ExponentialRetry

from empd.asset import AssetFailed
from empd.assets.content import Block, Intake
from empd.assets.naming import Mark, Naming, epoch_of
from empd.assets.store import Request, Stored, check_rival, is_leftover
from empd.errors import FailureClass
from empd.media import media_type

BLOCK_BYTES = 8 << 20
"""What is sent in one request, and content up to this in a single one: each has a cost of its own, here and there."""

BLOCKS_AT_ONCE = 5
"""The one being read among them: with BLOCK_BYTES, the memory that an upload takes, if it has the room to itself."""

BLOCKS_MAX = 50_000
CONTESTED_MAX = 10
COPY_POLL_S = 0.5
TIMEOUT_S = 60.0
RETRY_FIRST_S = 1
RETRY_BASE = 2
"""The n-th further try of a request comes RETRY_FIRST_S + RETRY_BASE ** n later, give or take a second."""

_PIECE_BYTES = 256 << 10
_RETRY_AFTER_S = 30.0
_CACHE_CONTROL = "public, max-age=31536000, immutable"
_MISSING = {"match_condition": MatchConditions.IfMissing}

_CLASSES = {
    "ContainerNotFound": FailureClass.NOT_FOUND,
    "ContainerBeingDeleted": FailureClass.UNAVAILABLE,
    "AccountIsDisabled": FailureClass.AUTH,
    "PublicAccessNotPermitted": FailureClass.AUTH,
    "ServerBusy": FailureClass.UNAVAILABLE,
    "OperationTimedOut": FailureClass.TIMEOUT,
    "InvalidResourceName": FailureClass.INVALID_INPUT,
    "InvalidMetadata": FailureClass.INVALID_INPUT,
    "MetadataTooLarge": FailureClass.INVALID_INPUT,
    "RequestBodyTooLarge": FailureClass.INVALID_INPUT,
}
_STATUSES = {
    401: FailureClass.AUTH,
    403: FailureClass.AUTH,
    404: FailureClass.NOT_FOUND,
    408: FailureClass.TIMEOUT,
    429: FailureClass.RATE_LIMITED,
}


class Account(NamedTuple):
    """Where the container is and how to be let in: `connection_string`, or `url` or the account's `name` (or both, when
    the URL does not tell the name) with `key` or `sas`; neither: the machine's managed identity."""

    container: str
    name: str = ""
    url: str = ""
    key: str = ""
    sas: str = ""
    connection_string: str = ""


class AzureStore:
    """Blobs of one container."""

    provider = "azure"

    def __init__(self, account: Account, retries: int) -> None:
        self._account = account
        self._retries = retries
        self._service: BlobServiceClient | None = None
        self._identity: Any = None

    async def open(self) -> None:
        """Makes the client; asks nothing."""
        options = {
            "retry_policy": ExponentialRetry(RETRY_FIRST_S, RETRY_BASE, self._retries, random_jitter_range=1),
            "connection_timeout": TIMEOUT_S,
            "read_timeout": TIMEOUT_S,
            "max_single_put_size": BLOCK_BYTES,
        }
        try:
            self._service = self._make(options)
        except ImportError:
            reason = "no key and no sas is given, and the machine's identity needs: pip install 'empd[azure]'"
            raise AssetFailed(FailureClass.AUTH, reason, upstream=True) from None
        except (ValueError, AzureError) as error:
            # Its message may quote the string that it could not read.
            reason = f"the account of container {self._account.container!r} is not usable: {type(error).__name__}"
            raise AssetFailed(FailureClass.AUTH, reason, upstream=True) from None

    async def close(self) -> None:
        """Closes the connections."""
        service, self._service = self._service, None
        identity, self._identity = self._identity, None
        for each in (service, identity):
            if each is not None:
                await each.close()

    async def check(self) -> None:
        """Asks for a blob that is not there: its container must be, and the credentials must fit."""
        blob = self._container.get_blob_client(".empd")
        try:
            await blob.get_blob_properties()
        except ResourceNotFoundError as error:
            if _code(error) == "ContainerNotFound":
                raise self._failure(error) from error
        except AzureError as error:
            raise self._failure(error) from error

    async def put(self, intake: Intake, request: Request) -> Stored:
        """See Store.put."""
        first = await intake.block(BLOCK_BYTES)
        kind = media_type(first.data, intake.ended)
        put = self._put_small if intake.ended else self._put_large
        try:
            name = await put(first, kind, intake, request)
        except AzureError as error:
            raise self._failure(error) from error
        url = self._container.get_blob_client(name).url.partition("?")[0]
        return Stored(name, kind, intake.size_bytes, intake.sha256, url)

    async def sweep(self, naming: Naming, keep: Collection[str]) -> int:
        """See Store.sweep."""
        removed = 0
        try:
            for scope in naming.scopes():
                async for found in self._container.list_blobs(name_starts_with=scope, include=["metadata"]):
                    if is_leftover(found.name, naming.mark, keep, found.metadata or {}):
                        removed += await self._delete(found.name, found.etag)
        except AzureError as error:
            raise self._failure(error) from error
        return removed

    async def discard(self, name: str, mark: Mark) -> bool:
        """See Store.discard."""
        try:
            found = await self._container.get_blob_client(name).get_blob_properties()
            if not mark.owns(found.metadata) or epoch_of(found.metadata) != mark.epoch:
                return False
            return await self._delete(name, found.etag)
        except ResourceNotFoundError:
            return False
        except AzureError as error:
            raise self._failure(error) from error

    @property
    def _container(self) -> ContainerClient:
        if self._service is None:
            reason = f"the store of container {self._account.container!r} is closed"
            raise AssetFailed(FailureClass.UNAVAILABLE, reason, upstream=True)
        return self._service.get_container_client(self._account.container)

    def _make(self, options: dict[str, Any]) -> BlobServiceClient:
        account = self._account
        credential: Any = account.key or account.sas or None
        if account.key and account.name and account.url:
            credential = {"account_name": account.name, "account_key": account.key}
        connection = account.connection_string
        if not connection and not account.url:
            connection = f"DefaultEndpointsProtocol=https;AccountName={account.name};EndpointSuffix=core.windows.net"
        if credential is None and "=" not in urllib.parse.urlsplit(account.url).query and not account.connection_string:
            # An extra; only boxes with a managed identity need it.
            from azure.identity.aio import DefaultAzureCredential

            credential = self._identity = DefaultAzureCredential()
        if connection:
            return BlobServiceClient.from_connection_string(connection, credential=credential, **options)
        return BlobServiceClient(account.url, credential=credential, **options)

    # --- one block ---------------------------------------------------------------------------------------------------

    async def _put_small(self, block: Block, kind: str, intake: Intake, request: Request) -> str:
        name = request.naming.final(request.output, intake.sha256, kind, request.hint)
        blob = self._container.get_blob_client(name)
        settings, metadata = _settings(kind, request), _metadata(request, intake)
        content = bytes(block.data)  # other buffers would be taken for streams
        block.data = memoryview(b"")  # what it has of the room is the copy's

        async def write(condition: Mapping[str, Any]) -> None:
            await blob.upload_blob(content, overwrite=True, content_settings=settings, metadata=metadata, **condition)

        await self._contend(blob, write, request, intake.sha256)
        return name

    async def _contend(self, blob: BlobClient, write: Any, request: Request, sha256: str) -> None:
        """Calls `write(condition)` until one condition holds. Raises AssetFailed when a later attempt was here."""
        condition: Mapping[str, Any] = _MISSING
        mark = request.naming.mark
        for _ in range(CONTESTED_MAX):
            try:
                await write(condition)
                return
            except (ResourceExistsError, ResourceModifiedError):
                pass
            try:
                rival = await blob.get_blob_properties()
            except ResourceNotFoundError:
                condition = _MISSING
                continue
            fields = rival.metadata
            if mark.owns(fields) and epoch_of(fields) == mark.epoch and fields.get("empd_sha256") == sha256:
                return  # written by this attempt, whose answer was lost
            check_rival(blob.blob_name, fields, mark)
            condition = {"etag": rival.etag, "match_condition": MatchConditions.IfNotModified}
        raise AssetFailed(FailureClass.UNAVAILABLE, f"{blob.blob_name!r} changes all the time", upstream=True)

    # --- many blocks -------------------------------------------------------------------------------------------------

    async def _put_large(self, first: Block, kind: str, intake: Intake, request: Request) -> str:
        begun = self._container.get_blob_client(request.naming.begun(request.output, request.number))
        blocks = await self._stage(begun, first, intake)
        name = request.naming.final(request.output, intake.sha256, kind, request.hint)
        try:
            await begun.commit_block_list(
                blocks, content_settings=_settings(kind, request), metadata=_metadata(request, intake)
            )
            blob = self._container.get_blob_client(name)

            async def copy(condition: Mapping[str, Any]) -> None:
                await _copy(begun, blob, condition)

            await self._contend(blob, copy, request, intake.sha256)
        finally:
            with contextlib.suppress(AzureError):  # never committed, or the sweep of the attempt that counts finds it
                await begun.delete_blob()
        return name

    async def _stage(self, blob: BlobClient, first: Block, intake: Intake) -> list[BlobBlock]:
        blocks: list[BlobBlock] = []
        free = asyncio.Semaphore(BLOCKS_AT_ONCE - 1)

        async def send(block_id: str, block: Block) -> None:
            body: Any = _Body(block)  # it takes asynchronous iterables, and does not say so
            await blob.stage_block(block_id, body, len(block.data))
            block.drop()
            free.release()

        block = first
        try:
            async with asyncio.TaskGroup() as sending:
                while block.data:
                    if len(blocks) == BLOCKS_MAX:
                        reason = f"an asset has at most {BLOCKS_MAX} blocks of up to {BLOCK_BYTES} bytes"
                        raise AssetFailed(FailureClass.INVALID_INPUT, reason, retry=False)
                    blocks.append(BlobBlock(f"{len(blocks):06d}"))
                    sending.create_task(send(blocks[-1].id, block))
                    if intake.ended:
                        break
                    await free.acquire()
                    block = await intake.block(BLOCK_BYTES)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return blocks

    async def _delete(self, name: str, etag: str) -> bool:
        quoted = etag if etag.startswith('"') else f'"{etag}"'  # listings leave the quotes out
        try:
            await self._container.get_blob_client(name).delete_blob(
                delete_snapshots="include", etag=quoted, match_condition=MatchConditions.IfNotModified
            )
        except (ResourceNotFoundError, ResourceModifiedError):
            return False
        return True

    def _failure(self, error: AzureError) -> AssetFailed:
        """The verdict on an error: by its code, then by its status, then by its type."""
        where = f"container {self._account.container!r}"
        if isinstance(error, ClientAuthenticationError) and error.response is None:
            reason = f"{where}: no credentials from this machine's identity: {_identity_problem(error.message)}"
            return AssetFailed(FailureClass.AUTH, reason, upstream=True, retry_after_s=_RETRY_AFTER_S)
        if not isinstance(error, HttpResponseError) or error.response is None:
            late = isinstance(error, ServiceResponseTimeoutError)
            failed = FailureClass.TIMEOUT if late else FailureClass.UNAVAILABLE
            kind = "cannot be reached" if isinstance(error, ServiceRequestError) else "did not answer"
            return AssetFailed(failed, f"the store of {where} {kind}: {error.message}", upstream=True)
        status, code = error.status_code or 0, _code(error)
        rest = FailureClass.UNAVAILABLE if status >= 500 else FailureClass.BAD_RESPONSE
        failure = _CLASSES.get(code) or _STATUSES.get(status) or rest
        headers: Mapping[str, str] = getattr(error.response, "headers", {})
        reason = f"{where}: {status} {code or error.reason} (x-ms-request-id {headers.get('x-ms-request-id', 'none')})"
        if failure is FailureClass.INVALID_INPUT:
            return AssetFailed(failure, reason, retry=False)
        return AssetFailed(failure, reason, upstream=True, retry_after_s=_RETRY_AFTER_S)


class _Body:
    """One block as a request's body, in pieces: in one piece aiohttp would copy it behind the request's head, and TLS
    encrypt it as a whole. With a method `read` the client would take it for a file that it cannot rewind, and try once.

    The client holds on to its requests for a while; so this holds on to no bytes of its own.
    """

    def __init__(self, block: Block) -> None:
        self._block = block

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        data = self._block.data
        for start in range(0, len(data), _PIECE_BYTES):
            yield data[start : start + _PIECE_BYTES]

    def __deepcopy__(self, memo: object) -> Self:
        """Itself: the client keeps a copy of every request that it repeats."""
        return self


async def _copy(source: BlobClient, target: BlobClient, condition: Mapping[str, Any]) -> None:
    """Copies within the account; the source's metadata and content type go along."""
    begun = await target.start_copy_from_url(source.url, **condition)
    status = begun["copy_status"]
    while status == "pending":
        await asyncio.sleep(COPY_POLL_S)
        status = str((await target.get_blob_properties()).copy.status)
    if status != "success":
        raise AssetFailed(FailureClass.UNAVAILABLE, f"copying to {target.blob_name!r} ended as {status}", upstream=True)


def _code(error: HttpResponseError) -> str:
    code = getattr(error, "error_code", None) or ""
    return str(getattr(code, "value", code))


def _identity_problem(message: str) -> str:
    """What azure-identity says of the machine; it also tells of each of a developer's tools that it has tried."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no reason is told"]
    return next((line for line in lines if line.startswith("ManagedIdentityCredential")), lines[0])


def _settings(kind: str, request: Request) -> ContentSettings:
    # A name with a hash always means the same bytes; one that the payload chose may be written again.
    cache_control = "no-cache" if request.naming.file_name else _CACHE_CONTROL
    return ContentSettings(content_type=kind, cache_control=cache_control)


def _metadata(request: Request, intake: Intake) -> dict[str, str]:
    own = request.naming.mark._replace(output=request.output).fields()
    # Metadata are HTTP headers: names are identifiers, values ASCII.
    given = {name: urllib.parse.quote(value, safe=" !#$&'()*+,/:;=?@[]") for name, value in request.metadata.items()}
    return {**given, **own, "empd_sha256": intake.sha256}
