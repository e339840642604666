"""Where the local daemon is found, and whether a daemon is on this host."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from empd import clock, settings

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


def host_id() -> str:
    """Machine id (else the host name) and boot id: equal for two processes exactly if they share memory and disk."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    return f"{machine or socket.gethostname()}:{clock.boot_id()}"
