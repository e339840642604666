"""Where the daemon is found, and with which keys it is spoken to."""

from __future__ import annotations

import os
from pathlib import Path

from empd import loading
from empd.errors import ConfigError, NotRunning

HISTORY_SOCKET_NAME = "history.sock"
SYSTEM_SOCKET = Path("/run/empd/empd.sock")
"""Where the daemon listens that systemd runs."""


def find_endpoint(endpoint: str | None = None) -> str:
    """The ZeroMQ endpoint to talk to: the one given, else `$EMPD_ENDPOINT`, else the one of the local settings. Where
    these say nothing and this user runs no daemon, the system's, if there is one.

    Raises ConfigError for what is no endpoint, and when settings have to be looked into that do not tell where it is.
    """
    given = endpoint or os.environ.get("EMPD_ENDPOINT")
    if given:
        if not given.startswith(("ipc://", "tcp://")):
            raise ConfigError([f"{given!r} is not an endpoint; accepted: ipc://PATH or tcp://HOST:PORT"])
        return given
    found, sources = loading.load_places()
    own = found.clients_endpoint
    said = {sources["endpoint"], sources["runtime_dir"]} != {"default"}
    if said or Path(own.removeprefix("ipc://")).exists() or not _reachable(SYSTEM_SOCKET):
        return own
    return f"ipc://{SYSTEM_SOCKET}"


def find_history(endpoint: str) -> str:
    """Where history answers for the daemon at `endpoint`: beside its socket, else where the settings say. Empty for a
    tcp endpoint: history listens on the daemon's host only, and another daemon's must not be asked."""
    if endpoint.startswith("tcp://"):
        return ""
    if not endpoint.startswith("ipc:///"):
        return loading.load().history_endpoint
    return f"ipc://{Path(endpoint.removeprefix('ipc://')).parent / HISTORY_SOCKET_NAME}"


def find_keys(endpoint: str, curve_dir: str | Path | None = None) -> Path | None:
    """The directory of CURVE keys for `endpoint`: the one given, else the setting's; None for a local socket.

    Raises ConfigError when a tcp endpoint has none.
    """
    if not endpoint.startswith("tcp://"):
        return None
    given = curve_dir or os.environ.get("EMPD_CURVE_DIR")
    found = Path(given) if given else loading.load().curve_dir
    if found is None:
        wanted = "the directory with client.key_secret and server.key"
        raise ConfigError(
            [f"{endpoint}: tcp is spoken with CURVE keys only; set curve_dir (EMPD_CURVE_DIR) to {wanted}"]
        )
    return found


def is_up(endpoint: str) -> bool:
    """Whether the daemon runs although its broker may not answer just now, as far as this host can tell."""
    if not endpoint.startswith("ipc://"):
        return False
    try:
        os.kill(int((Path(endpoint.removeprefix("ipc://")).parent / "pid").read_text()), 0)
    except PermissionError:  # another user's
        return True
    except (OSError, ValueError):
        return False
    return True


def no_answer(endpoint: str) -> NotRunning:
    """What to tell somebody whose greeting stayed without answer."""
    if is_up(endpoint):
        return NotRunning(f"the daemon at {endpoint} runs, but does not answer: it may be starting; its log says more")
    hint = "start it with `empd run` or set EMPD_ENDPOINT"
    if endpoint.startswith("tcp://"):
        # A server that is not the holder of server.key's secret cannot even say no.
        hint = "is it running, and is server.key in curve_dir its key?"
    return NotRunning(f"no empd answers at {endpoint}; {hint}")


def _reachable(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # the group's directory, and this user is not in the group
        return False
