"""A connector to the simulated service behind a WebSocket (`empd simulate --ws 8399`): the way of a real one.

A job's payload may carry `duration_s`, `steps`, `fail` and `faults` (`simulator/wishes`).
"""

from __future__ import annotations

from typing import Any, ClassVar

from empd.connectors.base import Cancellable
from empd.connectors.context import Context
from empd.connectors.failures import ConnectorError
from empd.connectors.protocol.asking import AskingConnector
from empd.connectors.protocol.correlation import MessageType
from empd.connectors.protocol.dialect import Progress

_KINDS = {
    "simulation_started": MessageType.JOB_SUBMIT,
    "simulation_progress": MessageType.JOB_PROGRESS,
    "simulation_complete": MessageType.JOB_COMPLETE,
    "simulation_error": MessageType.JOB_ERROR,
    "simulation_cancelled": MessageType.JOB_CANCELLED,
    "pong": MessageType.HEARTBEAT,
}


class SimulationWebsocketConnector(AskingConnector, Cancellable):
    """Hands jobs to the simulation and follows them, over lost connections too."""

    connector_id = "simulation_websocket"
    service_type = "simulation"
    default_base_port: ClassVar[int] = 8399
    confirms_cancel = True

    def build_job_message(self, job_id: str, context: Context) -> Any:
        """The job with what it wishes."""
        return {"type": "simulation_job", "id": job_id, "payload": context.payload}

    def build_cancel_message(self, job_id: str) -> Any:
        """Answered by simulation_cancelled, or by the end that came first."""
        return {"type": "simulation_cancel", "id": job_id}

    def build_query_message(self, job_id: str) -> Any:
        """Answered by simulation_started and what follows, or by simulation_unknown."""
        return {"type": "simulation_query", "id": job_id}

    def says_unknown(self, message: Any) -> bool:
        """The service has forgotten the job."""
        return bool(message["type"] == "simulation_unknown")

    def classify_message(self, message: Any) -> MessageType:
        """By its type."""
        return _KINDS.get(message["type"], MessageType.UNKNOWN)

    def extract_job_id(self, message: Any) -> str | None:
        """Our id."""
        return message.get("id") or None

    def extract_progress(self, message: Any) -> Progress | None:
        """Step by step."""
        step, steps = message["step"], message["steps"]
        return Progress(message["progress"], f"step {step} of {steps}", step, steps)

    def extract_error(self, message: Any) -> ConnectorError:
        """The simulated failure; what the service refuses is final."""
        error = message["error"]
        return ConnectorError(error["message"], retry=error["code"] == "simulated_failure")

    async def parse_job_result(self, message: Any, context: Context) -> Any:
        """What came of the work."""
        return message["result"]
