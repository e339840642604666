"""A service that only pretends: it takes time, reports steps, fails and breaks on demand.

`{"duration_s": 0}` is the no-op service. A job's payload may carry a fault of its own:
`{"fault": "crash", "times": 1}` breaks the first attempt only.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import re
import signal
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from empd.connectors.base import Connector, ConnectorConfig, ReportsProgress, Service, Site
from empd.connectors.context import Context, JobView
from empd.connectors.failures import ConnectorError, InvalidInput, RefusedByService
from empd.errors import FailureClass

Fault = Literal["", "crash", "segv", "abort", "hang", "hang_gil", "leak", "fail", "refuse"]
_WISHES = {"fault", "times", "duration_s", "steps", "failure_rate", "jitter", "bytes"}
"""What a payload may say instead of the configuration."""

_ALWAYS = 1 << 30
_GIL_PATTERN = "(a+)+$"
_GIL_TEXT = "a" * 64 + "!"


class SimulationConfig(ConnectorConfig):
    """How the simulation behaves. Times in seconds; rates 0…1.

    `jitter` spreads the duration by ± that part of it. `fault` strikes the first `times` attempts of every job;
    `bytes` is what a `leak` keeps.
    """

    duration_s: float = 0.0
    steps: int = 1
    jitter: float = 0.0
    failure_rate: float = 0.0
    health_failure_rate: float = 0.0
    echo: bool = False
    fault: Fault = ""
    times: int = _ALWAYS
    bytes: Annotated[int, msgspec.Meta(ge=0)] = 16 << 20


class SimulationConnector(Service, ReportsProgress):
    """The simulation."""

    connector_id = "simulation"
    service_type = "simulation"
    logs_jobs = False
    Config: ClassVar[type[ConnectorConfig]] = SimulationConfig
    config: SimulationConfig

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        Connector.__init__(self, config, site)
        self._health = random.Random(site.service)
        self._leaked: list[bytearray] = []
        self._plain = self.config.duration_s <= 0 and not self.config.failure_rate and not self.config.fault
        self._defaults = msgspec.to_builtins(self.config)
        self._answer = {"steps": self.config.steps}

    @property
    def leaked_bytes(self) -> int:
        """What all leaks keep."""
        return sum(len(block) for block in self._leaked)

    async def check_health(self) -> bool:
        """Fails at `health_failure_rate`."""
        return self._health.random() >= self.config.health_failure_rate

    async def process(self, job: JobView, context: Context) -> Any:
        """Waits, step by step, and returns `{"steps": n}`, with the payload as `echo` when configured."""
        payload = context.payload
        # The no-op service is what the daemon's own speed is measured with: nothing but these lines.
        if self._plain and (type(payload) is not dict or not payload.keys() & _WISHES):
            return {"echo": payload, **self._answer} if self.config.echo else self._answer
        wish = payload if isinstance(payload, dict) else {}
        try:
            config = msgspec.convert(
                {**self._defaults, **{k: v for k, v in wish.items() if k in _WISHES}}, SimulationConfig
            )
        except msgspec.ValidationError as error:
            raise InvalidInput(f"the payload asks for what cannot be: {error}") from None
        return await self._simulate(job, context, config)

    async def _simulate(self, job: JobView, context: Context, config: SimulationConfig) -> Any:
        chance = random.Random(job.id << 16 ^ job.attempt)
        if config.fault and job.attempt <= config.times:
            await self._break(config)
        steps = max(1, config.steps)
        duration_s = config.duration_s * (1 + config.jitter * chance.uniform(-1, 1))
        for step in range(1, steps + 1):
            if duration_s > 0:
                await asyncio.sleep(duration_s / steps)
            context.progress(step / steps, step=step, steps=steps)
        if chance.random() < config.failure_rate:
            raise ConnectorError("simulated failure", failure=FailureClass.INTERNAL)
        return {"steps": steps, "echo": context.payload} if config.echo else {"steps": steps}

    async def _break(self, config: SimulationConfig) -> None:
        match config.fault:
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            case "segv":
                ctypes.string_at(0)
            case "abort":
                os.abort()
            case "hang":
                await _sleep_through_cancel()
            case "hang_gil":
                # Catastrophic backtracking: one C call that never lets go of the GIL.
                re.match(_GIL_PATTERN, _GIL_TEXT)
            case "leak":
                block = bytearray(config.bytes)
                block[::4096] = b"\x01" * len(block[::4096])
                self._leaked.append(block)
            case "fail":
                raise ConnectorError("simulated failure")
            case "refuse":
                raise RefusedByService("simulated refusal")


async def _sleep_through_cancel() -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue
