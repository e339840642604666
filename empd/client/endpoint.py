"""Where the local daemon is found."""

from __future__ import annotations

import os
from pathlib import Path

from empd import settings

HISTORY_SOCKET_NAME = "history.sock"


def find_endpoint(endpoint: str | None = None) -> str:
    """The ZeroMQ endpoint to talk to: the one given, else `$EMPD_ENDPOINT`, else the one of the local settings.

    Raises ConfigError when it has to look into settings that are wrong.
    """
    return endpoint or os.environ.get("EMPD_ENDPOINT") or settings.load().clients_endpoint


def find_history(endpoint: str) -> str:
    """Where history answers for the daemon at `endpoint`: beside its socket, else where the settings say."""
    if not endpoint.startswith("ipc:///"):
        return settings.load().history_endpoint
    return f"ipc://{Path(endpoint.removeprefix('ipc://')).parent / HISTORY_SOCKET_NAME}"
