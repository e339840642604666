"""What all Automatic1111 connectors are: one call per job, with its task, health, models, memory and log."""

from __future__ import annotations

from typing import Any, ClassVar

from empd.connectors.base import (
    Cancellable,
    ConnectorConfig,
    DescribesService,
    HasModels,
    ReportsProgress,
    Result,
    Site,
)
from empd.connectors.context import Context, JobView
from empd.connectors.failures import ConnectorError
from empd.connectors.service.a1111.earlier import KIND, settle, tells_the_end
from empd.connectors.service.a1111.log import log_of
from empd.connectors.service.a1111.names import Names
from empd.connectors.service.a1111.output import Output, read_output
from empd.connectors.service.a1111.request import PICTURES, Request, read_request
from empd.connectors.service.a1111.server import A1111Server
from empd.connectors.service.a1111.task import Report, Task
from empd.errors import FailureClass
from empd.job import format_id

NO_CAPTION = "<error>"
"""What the server answers to a question, with 200, when the models that it needs are missing or fail."""

SECRET_FLAGS = ("api_auth", "gradio_auth", "ngrok")


class A1111Connector(A1111Server, Cancellable, ReportsProgress, HasModels, DescribesService):
    """Base of the family."""

    # Loading a model does not look at interrupts, and a task behind others can only be stopped when it has begun.
    cancel_grace_s: ClassVar[float] = 120.0

    def __init__(self, config: ConnectorConfig, site: Site) -> None:
        super().__init__(config, site)
        self._tasks: dict[tuple[int, int], Task] = {}
        self._names = Names(self.listed)

    async def process(self, job: JobView, context: Context) -> Any:
        """One operation."""
        request = read_request(await context.load(), self.config.operation, self.config.defaults)
        if not request.makes_pictures:
            return await self.ask(request, context)
        output = await self.pictures(request, context, context.progress)
        value = await self.saved(output, request, context)
        await self.tidy()
        return Result(value, usage={"images": float(len(value["images"]))})

    async def cancel(self, job: JobView, context: Context) -> None:
        """Interrupts the job's own task and no other; returns when it has ended."""
        task = self._tasks.get((job.id, job.epoch))
        if task is not None:
            await task.stop()

    async def pictures(
        self, request: Request, context: Context, report: Report, item: str = "", extra: dict[str, Any] | None = None
    ) -> Output:
        """Runs one task, whose intent is journaled with `extra`. Raises ConnectorError."""
        await settle(self, context, report)
        claim, earlier = (context.job_id, context.epoch), context.upstream.handle
        stray = earlier.id if earlier is not None and not earlier.ended else ""
        name = f"task(empd-{context.instance[:8]}-{format_id(context.job_id)}-{context.epoch:x}{item})"
        task = Task(self, name, stray, context, report)
        self._tasks[claim] = task
        try:
            # A model is loaded within the call, so that no neighbour's task meets another one.
            if request.route in PICTURES:
                await self._names.settle(request.body, request.model, request.loras)
            await self._intend(task, context, extra or {})
            body = await self._run(task, request, context)
        finally:
            task.over()
            del self._tasks[claim]
        if task.interrupted or context.cancelled:
            raise ConnectorError("interrupted, as it was to stop", failure=FailureClass.CANCELLED)
        return read_output(body, request)

    async def _intend(self, task: Task, context: Context, extra: dict[str, Any]) -> None:
        upstream = context.upstream
        await upstream.intend(KIND, task.id, fenced=False, extra={"url": self.base_url, **extra})
        if upstream.doubt and not self.config.retry.repeat_in_doubt:
            raise ConnectorError(f"not sent again: {upstream.doubt}", retry=False)
        if context.cancelled:
            raise ConnectorError("stopped before it had begun", failure=FailureClass.CANCELLED)

    async def _run(self, task: Task, request: Request, context: Context) -> Any:
        try:
            return await task.execute(request.route, request.body)
        except ConnectorError as error:
            if tells_the_end(error) and not context.cancelled:
                await context.upstream.ended()
            raise

    async def saved(self, output: Output, request: Request, context: Context, base: int = 0) -> dict[str, Any]:
        """The result: what is known of the pictures, and where they are."""
        images = []
        for i, picture in enumerate(output.pictures):
            seed = {} if picture.seed is None else {"seed": picture.seed}
            asset = await context.assets.save(picture.data, output=base + i, metadata={"kind": picture.kind, **seed})
            images.append({"kind": picture.kind, **seed, "infotext": picture.infotext, "asset": asset})
        if output.info:
            self.log.with_job(context).service(log_of(output.info), "generated")
        known = ("seed", "sampler_name", "steps", "cfg_scale", "width", "height", "sd_model_name", "sd_vae_name")
        facts = {name: output.info[name] for name in known if output.info.get(name) is not None}
        return {"operation": request.operation, "images": images, **facts}

    async def ask(self, request: Request, context: Context) -> Any:
        """A question or a command: the answer as it is."""
        if request.body is None:
            value = (await self.request("GET", f"/sdapi/v1/{request.route}", context)).value()
            if request.operation == "flags" and isinstance(value, dict):  # `--api-auth` is among them
                value = {name: flag for name, flag in value.items() if name not in SECRET_FLAGS}
            return value
        answer = await self.request("POST", f"/sdapi/v1/{request.route}", context, json=request.body, repeatable=True)
        value = answer.value()
        if request.operation == "interrogate" and str((value or {}).get("caption")).endswith(NO_CAPTION):
            raise ConnectorError("the server could not look at the picture; its log says why")
        return value

    async def tidy(self) -> None:
        """What is done between two jobs. The job that is over has its result, whatever comes of this."""
        config = self.config
        try:
            unload = config.unload_after_job
            if config.vram_free_bytes_min and not unload:
                unload = 0 < await self.vram_free_bytes() < config.vram_free_bytes_min
            if unload:
                await self.request("POST", "/sdapi/v1/unload-checkpoint", repeatable=True)
        except ConnectorError as error:
            self.log.warning("unload_failed", reason=error.message)

    async def models(self) -> list[str]:
        """The model that is loaded, under each of its names. The settings name the one that jobs get who name none."""
        options = await self.options()
        title, sha256 = str(options.get("sd_model_checkpoint") or ""), options.get("sd_checkpoint_hash")
        listed = await self.listed("sd-models") or []
        known = next((model for model in listed if sha256 and model.get("sha256") == sha256), {}) or next(
            (model for model in listed if title and title in (model.get("title"), model.get("model_name"))), {}
        )
        names = (known.get("title") or title, known.get("model_name"), known.get("hash"))
        return list(dict.fromkeys(str(name) for name in names if name))

    async def service_info(self) -> dict[str, Any]:
        """Models to choose from, memory, and whether it works."""
        look, options = await self.look(""), await self.options()
        return {
            "model": options.get("sd_model_checkpoint"),
            "vae": options.get("sd_vae"),
            "models": [model.get("title") for model in await self.listed("sd-models") or ()],
            "samplers": [sampler.get("name") for sampler in await self.listed("samplers") or ()],
            "running": look.job or None,
            "vram_free_bytes": await self.vram_free_bytes(),
        }
