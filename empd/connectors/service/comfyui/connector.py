"""What all ComfyUI connectors are: one prompt per job, with its life, health, models, memory and log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from empd.connectors.base import (
    Cancellable,
    ConnectorConfig,
    DescribesService,
    HasModels,
    ReportsProgress,
    Result,
    Resumable,
    Site,
)
from empd.connectors.context import Context, JobView
from empd.connectors.failures import ConnectorError
from empd.connectors.protocol.circuit_breaker import CircuitConfig
from empd.connectors.protocol.http import HTTPConnector
from empd.connectors.protocol.http_config import HTTPConfig
from empd.connectors.service.comfyui.listener import Heard, Listener
from empd.connectors.service.comfyui.log import ComfyUILog
from empd.connectors.service.comfyui.prompt import FOR_GOOD, Pace
from empd.connectors.service.comfyui.request import Request, read_request
from empd.connectors.service.comfyui.run import Earlier, Intend, Label, Run
from empd.connectors.service.comfyui.server import Server
from empd.job import format_id

CONNECTIONS_PER_JOB = 4
"""A prompt holds one for its WebSocket; the others are for calls beside it, such as those of a cancel."""

_LOADERS = (("CheckpointLoaderSimple", "ckpt_name"), ("UNETLoader", "unet_name"), ("LoraLoader", "lora_name"))


class ComfyUIConfig(HTTPConfig):
    """`poll_interval_s`: how often a prompt is looked for when nothing is heard of it. `outage_s_max`: how long a
    server that does not answer is waited for. `free_after_job`: what ComfyUI lets go of after each job; below
    `vram_free_bytes_min` after a job it unloads its models in any case. `circuit`: an open one also hides that the
    server is back from who looks for a prompt there, so it is open for 10 s at most.
    """

    health_path: str = "/system_stats"
    poll_interval_s: float = 5.0
    outage_s_max: float = 60.0
    circuit: CircuitConfig | None = CircuitConfig(open_s_max=10.0)
    input_subfolder: str = "empd"
    previews: bool = True
    free_after_job: Literal["nothing", "memory", "models"] = "nothing"
    vram_free_bytes_min: int = 0


class ComfyUIConnector(HTTPConnector, Cancellable, Resumable, ReportsProgress, HasModels, DescribesService):
    """Base of the family; `read` says what a payload asks for."""

    service_type: ClassVar[str] = "comfyui"
    Config: ClassVar[type[ConnectorConfig]] = ComfyUIConfig
    config: ComfyUIConfig
    default_base_port: ClassVar[int] = 8188
    # A node that loads a model says nothing, and looks at interrupts only when it is done.
    cancel_grace_s: ClassVar[float] = 120.0
    progress_interval_s: ClassVar[float] = 600.0

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        super().__init__(config, site)
        self.vram_used_bytes = 0
        self.config.connections_max = self.config.connections_max or CONNECTIONS_PER_JOB * site.max_concurrent_jobs
        self._running: dict[tuple[int, int], Run] = {}

    def read(self, context: Context) -> Request:
        """What the payload asks for. Raises InvalidInput."""
        return read_request(context.payload)

    async def process(self, job: JobView, context: Context) -> Any:
        """Runs the workflow, or takes up what an earlier attempt has left at the server."""
        await context.load()
        request = self.read(context)
        run = Run(self, context, request, Label(f"{context.instance}-{format_id(job.id)}-"), context.progress)
        handle = context.upstream.handle
        earlier = Earlier()
        if handle is not None and not handle.ended:
            earlier = Earlier(handle.id, str(handle.extra.get("url", "")))
        value = await self.follow(run, earlier, context, lambda prompt_id, url: _intend(context, prompt_id, url))
        await self.tidy()
        return Result(value, usage={"execution_s": value["execution_s"]})

    async def follow(self, run: Run, earlier: Earlier, context: Context, intend: Intend) -> dict[str, Any]:
        """Executes a run, and journals its end when it is no result. Raises ConnectorError."""
        claim = (context.job_id, context.epoch)
        self._running[claim] = run
        try:
            return await run.execute(earlier, intend)
        except ConnectorError:
            if run.spent and not context.cancelled:
                await context.upstream.ended()
            raise
        except asyncio.CancelledError:
            if context.stop_reason in FOR_GOOD:
                # Asked to stop, it did not in all its grace: what it holds, only the end of its process gives back.
                self.site.recycle_server("a prompt does not stop")
            raise
        finally:
            del self._running[claim]

    async def resume(self, job: JobView, context: Context) -> Any:
        """As `process`, which looks for what earlier attempts have left."""
        return await self.process(job, context)

    async def cancel(self, job: JobView, context: Context) -> None:
        """Takes the job's prompt out of the queue or interrupts it, and no other."""
        run = self._running.get((job.id, job.epoch))
        if run is not None and run.prompt is not None:
            await run.prompt.stop()

    async def tidy(self) -> None:
        """What is done between two jobs."""
        config = self.config
        unload = config.free_after_job == "models"
        if config.vram_free_bytes_min and not unload:
            info = await self.service_info()
            unload = info["vram_free_bytes"] < config.vram_free_bytes_min
        if unload or config.free_after_job == "memory":
            await self.server().free(unload_models=unload, free_memory=True)

    async def models(self) -> list[str]:
        """The model files that the loaders of stock ComfyUI can choose from."""
        server = self.server()
        found = [await server.choices(node_class, name) for node_class, name in _LOADERS]
        return list(dict.fromkeys(model for names in found for model in names))

    async def service_info(self) -> dict[str, Any]:
        """Version, queue depth, memory and VRAM."""
        server = self.server()
        stats, queue = await server.stats(), await server.queue()
        system, devices = stats.get("system", {}), stats.get("devices") or [{}]
        total, free = int(devices[0].get("vram_total") or 0), int(devices[0].get("vram_free") or 0)
        self.vram_used_bytes = max(0, total - free)
        return {
            "version": system.get("comfyui_version"),
            "pytorch_version": system.get("pytorch_version"),
            "queue_running": len(queue.running),
            "queue_pending": len(queue.pending),
            "ram_free_bytes": system.get("ram_free"),
            "device": devices[0].get("name"),
            "vram_total_bytes": total,
            "vram_free_bytes": free,
        }

    # --- what a run needs (see Host) ---

    @property
    def pace(self) -> Pace:
        """How often to look, how long to wait."""
        return Pace(self.config.poll_interval_s, self.config.outage_s_max, self.config.retry)

    @property
    def input_subfolder(self) -> str:
        """Where uploaded files go."""
        return self.config.input_subfolder

    @property
    def previews(self) -> bool:
        """Whether previews are shown as partial results."""
        return self.config.previews

    def server(self, url: str = "") -> Server:
        """The instance at `url`; empty: this worker's own."""
        return Server(self, url or self.base_url)

    def listener(self, url: str, prompt_id: str, on_heard: Callable[[Heard], None]) -> Listener:
        """A listener to one prompt."""
        return Listener(self, url, prompt_id, on_heard)

    def write(self, context: Context, record: ComfyUILog, name: str, fields: Mapping[str, Any]) -> None:
        """Logs what is known of a prompt."""
        self.log.with_job(context).bind(**fields).service(record, name)


async def _intend(context: Context, prompt_id: str, url: str) -> None:
    await context.upstream.intend("comfyui", prompt_id, extra={"url": url})
