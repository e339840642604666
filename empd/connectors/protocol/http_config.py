"""What can be set for a service behind HTTP, and what one request may ask for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import aiohttp
import msgspec

from empd.connectors.base import EndpointConfig
from empd.connectors.protocol.auth import AuthConfig
from empd.connectors.protocol.cache import CacheConfig
from empd.connectors.protocol.circuit_breaker import CircuitConfig
from empd.connectors.protocol.rate_limit import RateLimitConfig
from empd.connectors.protocol.retry import RetryConfig

if TYPE_CHECKING:
    from empd.connectors.protocol.http_response import HTTPResponse

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


class HTTPConfig(EndpointConfig):
    """The connection to one service. A connector's own `Config` extends it, and may set other defaults.

    `base_url` (or `base_port`) and the `endpoint` of the main call make its address. Time-outs: to connect, between
    two bytes, and for all of one call (0: none). `connections_max`: the jobs' pool, by default the worker's slots;
    health and cancels have connections of their own. `circuit` or `rate_limit` null: none. `idempotency_header` carries
    the submission's key, where the service knows one. Proxies of the environment are not used; credentials never
    follow a redirect to another host.
    """

    endpoint: str = ""
    method: Method = "POST"
    headers: dict[str, str] = {}
    auth: AuthConfig | None = None
    connect_timeout_s: Seconds = 10.0
    read_timeout_s: Seconds = 300.0
    total_timeout_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    connections_max: Annotated[int, msgspec.Meta(ge=1)] | None = None
    retry: RetryConfig = RetryConfig()
    rate_limit: RateLimitConfig | None = RateLimitConfig()
    circuit: CircuitConfig | None = CircuitConfig()
    cache: CacheConfig | None = None
    response_bytes_max: Annotated[int, msgspec.Meta(ge=1)] = 64 << 20
    redirects_max: Annotated[int, msgspec.Meta(ge=0)] = 3
    health_path: str = ""
    health_timeout_s: Seconds = 5.0
    idempotency_header: str = ""
    verify_tls: bool = True
    ca_file: str = ""
    proxy: str = ""


class RequestOptions(TypedDict, total=False):
    """What one request may ask for beside method and path."""

    json: Any
    """The body, as a value."""
    data: bytes | Callable[[], Any]
    """The body as it is, or a function that makes it anew for each try (aiohttp.FormData, a file)."""
    headers: Mapping[str, str]
    params: Mapping[str, str]
    """The query."""
    path_args: Mapping[str, object]
    """Values for `{name}` in the path; they are quoted."""
    endpoint: str
    """The circuit that it counts for; by default method and path as written."""
    idempotency_key: str
    """Sent in `idempotency_header`: `context.idempotency_key`, for the one call that a job is submitted with."""
    repeatable: bool
    """Doing it twice is the same as once. By default true for GET, HEAD, PUT, DELETE, and with an idempotency key."""
    accept: Collection[int]
    """Failure statuses that are an answer here (404 of a status that may be gone)."""
    check: Callable[[HTTPResponse], bool]
    """False: the answer is a failure although its status is not."""
    timeout: aiohttp.ClientTimeout
    response_bytes_max: int
    once: bool
    """Not tried again."""
    aside: bool
    """Waits for none of the jobs' connections, nor for `concurrent_max`: health, a cancel."""
