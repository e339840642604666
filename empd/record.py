"""The base of everything that is written as a msgpack array: frames on sockets, rows in the journal."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, array_like=True, gc=False):
    """An array of fields in the order of their declaration. Fields are only ever appended, with defaults.

    Not tracked by the garbage collector: records hold no cycles.
    """
