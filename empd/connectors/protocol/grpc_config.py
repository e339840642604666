"""What can be set for a service behind gRPC, and the channel that comes of it. No I/O but the reading of key files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from empd import __version__
from empd.connectors.base import EndpointConfig
from empd.connectors.protocol.auth import AuthConfig
from empd.connectors.protocol.cache import CacheConfig
from empd.connectors.protocol.circuit_breaker import CircuitConfig
from empd.connectors.protocol.rate_limit import RateLimitConfig
from empd.connectors.protocol.retry import RetryConfig

Positive = Annotated[float, msgspec.Meta(gt=0)]

ATTEMPTS_MAX = 5
"""gRPC itself makes no more."""

BACKOFF_S_MIN = 0.01
"""A call whose back-off comes to less than a millisecond, with its jitter, gRPC forgets: it waits for its deadline."""

KEEPALIVE_TIMEOUT_S = 10

_IPV4 = re.compile(r"\d{1,3}(\.\d{1,3}){3}:\d+")
_IPV6 = re.compile(r"\[[0-9A-Fa-f:.]+\]:\d+")


class TlsConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """TLS: PEM files of the authority (empty: the usual ones) and of this client, and the name that the server's
    certificate bears where it is not the address."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""


class GRPCConfig(EndpointConfig):
    """Where to and how; times in seconds.

    `target` is `host:port` (or any name that gRPC knows), or `addresses` are several that share the calls in turn:
    literal IPv4 (or IPv6) addresses with their ports; else the service's own endpoint. `auth` goes into the metadata of
    each call. `timeout_s` is the deadline of one call, beside the job's own. `retry` becomes gRPC's own policy
    (UNAVAILABLE only, at most 5 attempts): there is no other loop. `keepalive_s` 0: none. `options` are further channel
    arguments of gRPC.
    """

    target: str = ""
    addresses: tuple[str, ...] = ()
    tls: TlsConfig | None = None
    auth: AuthConfig | None = None
    metadata: dict[str, str] = {}
    connect_timeout_s: Positive = 10.0
    timeout_s: Positive = 300.0
    message_bytes_max: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] = 64 << 20
    keepalive_s: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    retry: RetryConfig = RetryConfig(base_s=0.2, cap_s=5.0)
    rate_limit: RateLimitConfig | None = None
    circuit: CircuitConfig | None = CircuitConfig()
    cache: CacheConfig | None = None
    options: dict[str, int | str] = {}


def target_of(config: GRPCConfig, endpoint: str) -> str:
    """The channel's target. Raises ValueError when nobody says where, or the addresses do not go together."""
    if config.target:
        return config.target
    if not config.addresses:
        host = endpoint.partition("://")[2].rstrip("/")
        if not host:
            raise ValueError("no target, no addresses and no endpoint: where is the service?")
        return host
    for scheme, pattern in (("ipv4", _IPV4), ("ipv6", _IPV6)):
        if all(map(pattern.fullmatch, config.addresses)):
            return f"{scheme}:{','.join(config.addresses)}"
    if len(config.addresses) == 1:
        return config.addresses[0]
    raise ValueError(
        "addresses: several of them must be literal IPv4 (or IPv6) ones with ports; a name that stands for several "
        "machines goes into target"
    )


def channel_options(config: GRPCConfig) -> list[tuple[str, int | str]]:
    """gRPC's channel arguments."""
    options: dict[str, int | str] = {
        "grpc.primary_user_agent": f"empd/{__version__}",
        "grpc.service_config": json.dumps(service_config(config.retry)),
        "grpc.enable_retries": int(config.retry.attempts_max > 1),
        "grpc.max_send_message_length": config.message_bytes_max,
        "grpc.max_receive_message_length": config.message_bytes_max,
        "grpc.enable_http_proxy": 0,
        "grpc.use_local_subchannel_pool": 1,  # a connector's connections are its own, and gone when it is closed
        "grpc.initial_reconnect_backoff_ms": int(config.retry.base_s * 1000),
        "grpc.max_reconnect_backoff_ms": int(config.retry.cap_s * 1000),
    }
    if config.keepalive_s > 0:
        options["grpc.keepalive_time_ms"] = int(config.keepalive_s * 1000)
        options["grpc.keepalive_timeout_ms"] = KEEPALIVE_TIMEOUT_S * 1000
    if config.tls is not None and config.tls.server_name:
        options["grpc.ssl_target_name_override"] = config.tls.server_name
    return list({**options, **config.options}.items())


def service_config(retry: RetryConfig) -> dict[str, Any]:
    """https://github.com/grpc/grpc/blob/master/doc/service_config.md"""
    found: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    attempts = min(retry.attempts_max, ATTEMPTS_MAX)
    if attempts > 1:
        policy = {
            "maxAttempts": attempts,
            "initialBackoff": f"{max(retry.base_s, BACKOFF_S_MIN):.3f}s",
            "maxBackoff": f"{max(retry.cap_s, BACKOFF_S_MIN):.3f}s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        found["methodConfig"] = [{"name": [{}], "retryPolicy": policy}]
    return found


def pem_files(tls: TlsConfig) -> Sequence[bytes | None]:
    """Authority, key and certificate. Raises OSError."""
    return [Path(name).read_bytes() if name else None for name in (tls.ca_file, tls.key_file, tls.cert_file)]
