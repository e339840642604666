"""Payloads on their way out: inline bytes, or a blob in the arena when they are large and the daemon is here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from empd.clock import host_id
from empd.errors import BlobMissing, FailureClass, Refused
from empd.memory.arena import Arena
from empd.payload import BlobRef, Carried, encode_value
from empd.wire.frames import Welcome


def many(payloads: Iterable[Any]) -> Iterator[Any]:
    """The payloads of several jobs. Raises TypeError for what is one payload: its parts would become jobs."""
    if isinstance(payloads, (str, bytes, bytearray, memoryview, Mapping)):
        kind = type(payloads).__name__
        raise TypeError(f"submit_many takes an iterable of payloads, not one of type {kind}: use submit, or a list")
    return iter(payloads)


class Payloads:
    """Encodes payloads and reads results for one daemon, whose Welcome says its limits and where its arena lies."""

    def __init__(self, welcome: Welcome) -> None:
        self._inline_bytes_max = welcome.inline_bytes_max
        local = welcome.host == host_id()
        # Any process of this host may read what its user may; only the daemon's own user writes.
        places = Path(welcome.spool_dir), Path(welcome.volatile_dir)
        self._arena = Arena(*places, sync=welcome.sync_blobs) if local else None

    def encode(self, payload: Any) -> tuple[str, Carried]:
        """A payload as (encoding, what the frame carries). A BlobRef is passed on.

        Raises TypeError when it has no encoding, Refused when it is too large for a daemon on another host.
        """
        if type(payload) is bytes and len(payload) <= self._inline_bytes_max:
            return "bytes", payload
        if type(payload) is BlobRef:
            return payload.encoding, payload
        if isinstance(payload, Path):
            raise TypeError(f"a path is not read by itself: pass Path({str(payload)!r}).read_bytes(), or its text")
        encoding, data = encode_value(payload)
        size = data.nbytes if type(data) is memoryview else len(data)
        if size > self._inline_bytes_max:
            return encoding, self._put(encoding, data, size)
        # A view's owner may change it before the frame is sent, or sent again.
        return encoding, data if type(data) is bytes else bytes(data)

    def _put(self, encoding: str, data: bytes | memoryview, size: int) -> BlobRef:
        if self._arena is None or not self._arena.usable():
            where = "is on another host" if self._arena is None else "runs as another user"
            reason = f"the payload has {size} bytes, over {self._inline_bytes_max}, and the daemon {where}"
            advice = "POST the payload to /v1/blobs and submit the BlobRef that comes back"
            raise Refused(FailureClass.INVALID_INPUT, f"{reason}: {advice}")
        return self._arena.put(data, durable=True, encoding=encoding)

    def read(self, ref: BlobRef) -> bytes:
        """A blob's content. Raises BlobMissing."""
        if self._arena is None or not self._arena.readable():
            raise BlobMissing(f"result {ref.id} cannot be read from here: GET it from /v1/blobs/{ref.id}")
        return self._arena.read(ref)
