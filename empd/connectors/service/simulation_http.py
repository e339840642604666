"""A connector to the simulated service behind HTTP (`empd simulate --http 8299`): the way of a real one, without one.

A job's payload may carry `duration_s`, `steps`, `fail` and `faults` (`simulator/wishes`).
"""

from __future__ import annotations

from typing import Any, ClassVar

from empd.connectors.base import ConnectorConfig, DescribesService
from empd.connectors.context import Context, JobView
from empd.connectors.failures import BadResponse, ConnectorError
from empd.connectors.protocol.http_poll import PollConfig, Standing, Status, SubmitAndPoll
from empd.connectors.protocol.http_response import HTTPResponse


class SimulationHttpConfig(PollConfig):
    """As of any service that is polled, with the simulation's paths."""

    endpoint: str = "/jobs"
    status_path: str = "/jobs/{id}"
    cancel_path: str = "/jobs/{id}/cancel"
    health_path: str = "/health"
    idempotency_header: str = "Idempotency-Key"
    poll_interval_s: float = 0.2


class SimulationHttpConnector(SubmitAndPoll, DescribesService):
    """Submits to the simulation, polls, collects."""

    connector_id = "simulation_http"
    service_type = "simulation"
    default_base_port: ClassVar[int] = 8299
    Config: ClassVar[type[ConnectorConfig]] = SimulationHttpConfig
    config: SimulationHttpConfig

    def parse_status(self, response: HTTPResponse, context: Context) -> Status:
        """By its four words."""
        match response.json():
            case {"status": "running", "progress": fraction, "step": step, "steps": steps}:
                return Status(Standing.RUNNING, fraction, f"step {step} of {steps}")
            case {"status": "completed"}:
                return Status(Standing.TERMINAL, 1.0)
            case {"status": "failed", "error": {"message": text}}:
                return Status(Standing.TERMINAL, error=ConnectorError(text))
            case {"status": "cancelled"}:
                return Status(Standing.TERMINAL, error=ConnectorError("it was cancelled upstream"))
        raise BadResponse("the answer is no status", evidence=response.text()[:2000])

    def parse_response(self, response: HTTPResponse, job: JobView, context: Context) -> Any:
        """What came of the work."""
        return response.json()["result"]

    async def service_info(self) -> dict[str, Any]:
        """What the simulation has counted."""
        counts: dict[str, Any] = (await self.request("GET", "/_/counts", once=True)).json()
        return {"service_name": "empd simulation", **{key: counts[key] for key in ("executions", "tasks")}}
