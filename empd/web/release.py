"""Which empd this is."""

from __future__ import annotations

import functools
from importlib import metadata


@functools.cache
def version() -> str:
    """The installed version; "0" when empd runs from a directory that was not installed."""
    try:
        return metadata.version("empd")
    except metadata.PackageNotFoundError:
        return "0"
