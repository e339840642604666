"""Where a service's own instance listens.

Sources in this order: the environment (`<SERVICE>_BASE_URL`, `<SERVICE>_BASE_PORT`), the mapping (`base_url`,
`base_port` in `api_config`), what was registered at run time, the connector's default. A base port is that of the first
GPU's instance: the worker of GPU N talks to port + N, so every worker has an instance of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

HOST = "127.0.0.1"


def _nowhere() -> str:
    return ""


class Endpoints:
    """The URL of one worker's instance of one service; a registered one may change while the worker runs."""

    def __init__(self, fixed: str = "", registered: Callable[[], str] = _nowhere, default: str = "") -> None:
        self._fixed = fixed
        self._registered = registered
        self._default = default

    @property
    def url(self) -> str:
        """Without a slash at the end; empty when nobody says where."""
        return self._fixed or self._registered() or self._default


class Defaults(NamedTuple):
    """What a connector's class says where nothing else does."""

    base_url: str = ""
    base_port: int = 0


def fixed_url(service: str, instance: int, api_config: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """What environment or mapping say; `instance` counts this host's instances from 0. Raises ValueError."""
    stem = variable_stem(service)
    for origin, url, port in (
        (f"{stem}_BASE_…", environ.get(f"{stem}_BASE_URL", ""), environ.get(f"{stem}_BASE_PORT", "")),
        ("api_config", api_config.get("base_url") or "", api_config.get("base_port") or ""),
    ):
        if url:
            return str(url).rstrip("/")
        if port:
            return local_url(_port(origin, port) + instance, str(api_config.get("host") or HOST))
    return ""


def default_url(defaults: Defaults, instance: int) -> str:
    """The connector's own default."""
    if defaults.base_url or not defaults.base_port:
        return defaults.base_url.rstrip("/")
    return local_url(defaults.base_port + instance)


def local_url(port: int, host: str = HOST) -> str:
    """The URL of a plain HTTP server."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def variable_stem(service: str) -> str:
    """`comfyui-local` → `COMFYUI_LOCAL`."""
    return re.sub(r"[^A-Za-z0-9]", "_", service).upper()


def _port(origin: str, value: Any) -> int:
    try:
        port = int(value)
    except (TypeError, ValueError):
        port = 0
    if not 0 < port < 65_536:
        raise ValueError(f"{origin}: {value!r} is no port; accepted: 1 to 65535")
    return port
