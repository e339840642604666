"""Which gate stands before a service, by what is spoken there."""

from __future__ import annotations

import pkgutil

from empd.connectors.conformance.gate import Gate

_GATES = {
    "http": "empd.connectors.conformance.gate:HTTPGate",
    "websocket": "empd.connectors.conformance.gate:HTTPGate",
    "grpc": "empd.connectors.conformance.gate_grpc:GRPCGate",  # by name: grpcio starts threads when it is loaded
    "tcp": "empd.connectors.conformance.gate:TCPGate",
}


def gate_for(transport: str, url: str) -> Gate:
    """A gate that is not open. Raises ImportError where what it needs is not installed."""
    kind: type[Gate] = pkgutil.resolve_name(_GATES[transport])
    return kind(url)
