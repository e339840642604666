"""A bounded cache of results: least recently used goes first, nothing is older than its time to live."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Annotated, Any

import msgspec

from empd.connectors.protocol.json_pointer import MISSING, Pointer


class CacheConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """`key` declares which parts of the payload (JSON pointers) make two jobs the same; `""` is all of it.

    The `cache` of a service's configuration is kept by its worker, around `process`, whatever the protocol.
    """

    ttl_s: Annotated[float, msgspec.Meta(gt=0)]
    key: tuple[str, ...] = ("",)
    entries_max: Annotated[int, msgspec.Meta(ge=1)] = 1024
    bytes_max: Annotated[int, msgspec.Meta(ge=1)] = 64 << 20

    def __post_init__(self) -> None:
        for text in self.key:
            Pointer(text)  # what is none is said when the configuration is read


class Cache:
    """Values by key; the time is an argument."""

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        self._pointers = tuple(map(Pointer, config.key))
        self._entries: OrderedDict[bytes, tuple[float, int, Any]] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def key_of(self, payload: Any) -> bytes:
        """The key of a job with this payload; parts that are missing differ from all that are there."""
        parts = [pointer.find(payload) for pointer in self._pointers]
        packed = msgspec.json.encode([[] if part is MISSING else [part] for part in parts], order="deterministic")
        return hashlib.blake2b(packed, digest_size=16).digest()

    def get(self, key: bytes, now_s: float) -> Any:
        """The value, or `json_pointer.MISSING`."""
        entry = self._entries.get(key)
        if entry is None or now_s >= entry[0]:
            self.misses += 1
            if entry is not None:
                self._drop(key)
            return MISSING
        self.hits += 1
        self._entries.move_to_end(key)
        return entry[2]

    def put(self, key: bytes, value: Any, size: int, now_s: float) -> None:
        """Keeps a value of `size` bytes; one that is larger than all the room is not kept."""
        self._drop(key)
        if size > self._config.bytes_max:
            return
        self._entries[key] = (now_s + self._config.ttl_s, size, value)
        self.bytes += size
        while len(self._entries) > self._config.entries_max or self.bytes > self._config.bytes_max:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry[1]
