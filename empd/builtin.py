"""The connectors that come with empd: name in the mapping → `module:Class`. Nothing of them is imported here."""

from __future__ import annotations

_SERVICE = "empd.connectors.service"

BUILT_IN_CONNECTORS: dict[str, str] = {
    "PythonConnector": f"{_SERVICE}.python_callable:PythonConnector",
    "SimulationConnector": f"{_SERVICE}.simulation:SimulationConnector",
}
