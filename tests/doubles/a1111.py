"""A double of Automatic1111's WebUI that speaks its REST API as the 1.10 line does, the awkward parts included.

One task at a time behind a lock; progress and interrupt of the whole server; `info` as JSON within JSON; a grid before
the pictures of a batch; a task that failed stays `current_task`; an interrupted call answers 200 with what there is.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Self

from aiohttp import BasicAuth, web

from empd.cli.demo.png import Picture, encode

MODELS = [
    {"title": "dream.safetensors [0123456789]", "model_name": "dream", "hash": "0123456789", "sha256": "ab" * 32},
    {"title": "paint.safetensors [9876543210]", "model_name": "paint", "hash": "9876543210", "sha256": "cd" * 32},
]
SAMPLERS = ("Euler", "Euler a", "DPM++ 2M")
SCRIPTS = ("prompts from file or textbox", "x/y/z plot")
ALWAYS_ON = ("controlnet", "adetailer")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Failure(Exception):
    """What the server's own code raises: the class named in the answer, and its status."""

    def __init__(self, name: str, text: str = "", status: int = 500, detail: Any = "") -> None:
        super().__init__(text)
        self.name = name
        self.status = status
        self.detail = detail


def picture(seed: int, side: int = 8) -> str:
    """A small PNG that tells seeds apart, base64 without a head."""
    pixel = bytes((seed & 255, seed >> 8 & 255, seed >> 16 & 255))
    return base64.b64encode(encode(Picture(side, side, 3, [pixel * side] * side))).decode()


class A1111Double:
    """A server on a free port. `step_s`: what a step takes; `page`: whether the routes of its page are there too."""

    def __init__(self, *, step_s: float = 0.002, page: bool = True, auth: str = "") -> None:
        self.step_s = step_s
        self.page = page
        self.auth = auth
        self.failing: Failure | None = None
        self.eta_s: float | None = None  # in place of the one that follows from the time spent
        self.steps_max: int | None = None  # of tasks that begin from now on
        self.looks = 0
        self.options = {"sd_model_checkpoint": MODELS[0]["title"], "sd_vae": "Automatic", "return_grid": True}
        self.current: str | None = None
        self.pending: list[str] = []
        self.started: list[str] = []
        self.finished: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.interrupts: list[str | None] = []
        self.unloads = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self._lock = asyncio.Lock()
        self._state: dict[str, Any] = {"interrupted": False, "skipped": False, "job": "", "job_count": 0, "job_no": 0}
        self._state |= {"sampling_step": 0, "sampling_steps": 0, "stopping_generation": False, "job_timestamp": "0"}
        self._began_s = 0.0
        self._preview = 0

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._answer], client_max_size=1 << 30)
        get, post = app.router.add_get, app.router.add_post
        for name in ("txt2img", "img2img"):
            post(f"/sdapi/v1/{name}", self._generate)
        for name, value in self._lists().items():
            get(f"/sdapi/v1/{name}", _telling(value))
        for name in ("refresh-checkpoints", "refresh-vae", "refresh-embeddings", "reload-checkpoint"):
            post(f"/sdapi/v1/{name}", _telling({}))
        post("/sdapi/v1/unload-checkpoint", self._unload)
        post("/sdapi/v1/options", self._set_options)
        post("/sdapi/v1/interrupt", self._interrupt)
        post("/sdapi/v1/extra-single-image", self._extra_single)
        post("/sdapi/v1/extra-batch-images", self._extra_batch)
        post("/sdapi/v1/interrogate", self._interrogate)
        post("/sdapi/v1/png-info", self._png_info)
        get("/sdapi/v1/progress", self._progress)
        post("/internal/progress", self._internal_progress)
        get("/internal/pending-tasks", _telling(lambda: {"size": len(self.pending), "tasks": self.pending}))
        self._runner = web.AppRunner(app, handler_cancellation=False, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    @property
    def step(self) -> int:
        """The step that is being done."""
        return int(self._state["sampling_step"])

    async def stop(self) -> None:
        """Ends as if it were killed."""
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def _lists(self) -> dict[str, Any]:
        return {
            "options": lambda: self.options,
            "sd-models": MODELS,
            "samplers": [{"name": name, "aliases": [], "options": {}} for name in SAMPLERS],
            "schedulers": [{"name": "karras", "label": "Karras", "aliases": None, "default_rho": -1}],
            "upscalers": [{"name": "None", "model_name": None, "scale": 4}],
            "latent-upscale-modes": [{"name": "Latent"}],
            "sd-vae": [{"model_name": "fine.vae.pt", "filename": "/vae/fine.vae.pt"}],
            "loras": [{"name": "ink", "alias": "ink", "path": "/loras/ink.safetensors", "metadata": {}}],
            "embeddings": {"loaded": {}, "skipped": {}},
            "scripts": {"txt2img": [*SCRIPTS, *ALWAYS_ON], "img2img": [*SCRIPTS, *ALWAYS_ON]},
            "script-info": [],
            "extensions": [],
            "cmd-flags": {"api": True},
            "memory": {
                "ram": {"free": 1, "used": 1, "total": 2},
                "cuda": {"system": {"free": 3 << 30, "total": 8 << 30}},
            },
        }

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """As `api_middleware`: credentials, the form of errors."""
        if self.auth and request.path.startswith("/sdapi"):
            try:
                allowed = BasicAuth.decode(request.headers.get("Authorization", "")).password == self.auth
            except ValueError:
                allowed = False
            if not allowed:
                headers = {"WWW-Authenticate": "Basic"}
                body = {"error": "HTTPException", "detail": "Incorrect username or password", "body": "", "errors": ""}
                return web.json_response(body, status=401, headers=headers)
        try:
            if request.path.startswith("/internal") and not self.page:
                raise web.HTTPNotFound
            answer = await handler(request)
        except Failure as failure:
            body = {"error": failure.name, "detail": failure.detail, "body": "", "errors": str(failure)}
            if not failure.name:
                body = {"detail": failure.detail}  # FastAPI's own
            return web.json_response(body, status=failure.status)
        except web.HTTPNotFound:
            return web.json_response({"detail": "Not Found"}, status=404)
        answer.headers["X-Process-Time"] = "0.0"
        return answer

    # --- pictures ---

    async def _generate(self, request: web.Request) -> web.Response:
        body = _defaults() | await request.json()
        self.bodies.append(body)
        body["steps"] = min(body["steps"], self.steps_max or body["steps"])
        _validate(body, request.path.endswith("img2img"))
        task = body.get("force_task_id") or f"task(txt2img-{random.getrandbits(32):x})"
        self.pending.append(task)
        async with self._lock:
            self.pending.remove(task)
            return await self._run(task, body)

    async def _run(self, task: str, body: dict[str, Any]) -> web.Response:
        self._state |= {"interrupted": False, "skipped": False, "job": "scripts", "job_count": -1, "job_no": 0}
        self._state |= {"sampling_step": 0, "sampling_steps": 0}
        self._began_s = time.monotonic()
        self.current = task
        self.started.append(task)
        try:
            self._override(body["override_settings"])
            if self.failing is not None:
                raise self.failing
            await asyncio.sleep(self.step_s)
            count = body["n_iter"]
            self._state |= {"job_count": count * (1 + bool(body.get("enable_hr")))}
            for number in range(self._state["job_count"]):
                self._state |= {"job_no": number, "sampling_step": 0, "sampling_steps": body["steps"]}
                await self._steps(body["steps"])
            self.current = None
            self.finished.append(task)
        finally:
            self._state |= {"job": "", "job_count": 0}
        return _json(_result(body, self.options))

    async def _steps(self, steps: int) -> None:
        for step in range(steps):
            if self._state["interrupted"]:
                return
            self._state["sampling_step"] = step
            self._preview += 1
            await self.gate.wait()
            await asyncio.sleep(self.step_s)

    def _override(self, override: dict[str, Any]) -> None:
        wanted = override.get("sd_model_checkpoint")
        if wanted is not None and wanted not in {model["title"] for model in MODELS}:
            raise Failure("RuntimeError", f"model {wanted!r} not found")
        self.options |= override

    async def _interrupt(self, request: web.Request) -> web.Response:
        self.interrupts.append(self.current)
        self._state["interrupted"] = True
        return _json({})

    # --- progress ---

    def _fraction(self) -> float:
        state = self._state
        if state["job_count"] == 0:
            return 0.0
        done = 0.01
        if state["job_count"] > 0:
            done += state["job_no"] / state["job_count"]
        if state["sampling_steps"] > 0:
            done += 1 / state["job_count"] * state["sampling_step"] / state["sampling_steps"]
        return min(done, 1.0)

    def _eta_s(self) -> float:
        if self.eta_s is not None:
            return self.eta_s
        fraction, elapsed_s = self._fraction(), time.monotonic() - self._began_s
        return elapsed_s / fraction - elapsed_s if fraction > 0 else 0.0

    async def _progress(self, request: web.Request) -> web.Response:
        self.looks += 1
        busy = self._state["job_count"] != 0
        wanted = busy and request.query.get("skip_current_image") != "true" and self._preview
        return _json(
            {
                "progress": self._fraction(),
                "eta_relative": self._eta_s() if busy else 0.0,
                "state": self._state,
                "current_image": picture(self._preview) if wanted else None,
                "textinfo": None,
                "current_task": self.current,
            }
        )

    async def _internal_progress(self, request: web.Request) -> web.Response:
        asked = await request.json()
        task = asked["id_task"]
        active, queued = task == self.current, task in self.pending
        answer = {"active": active, "queued": queued, "completed": task in self.finished, "id_live_preview": -1}
        if not active:
            return _json(
                {**answer, "textinfo": "In queue..." if queued else "Waiting...", "progress": None, "eta": None}
            )
        if asked.get("live_preview") and self._preview:
            answer["live_preview"] = f"data:image/png;base64,{picture(self._preview)}"
        return _json({**answer, "progress": self._fraction(), "eta": self._eta_s(), "textinfo": None})

    # --- the rest ---

    async def _set_options(self, request: web.Request) -> web.Response:
        self._override(await request.json())
        return web.json_response(None)

    async def _unload(self, request: web.Request) -> web.Response:
        self.unloads += 1
        return _json({})

    async def _extra_single(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        _decoded(body.get("image", ""))
        return _json({"html_info": "<p>upscaled</p>", "image": picture(4)})

    async def _extra_batch(self, request: web.Request) -> web.Response:
        body = await request.json()
        for entry in body["imageList"]:
            _decoded(entry["data"])
        return _json({"html_info": "", "images": [picture(i) for i in range(len(body["imageList"]))]})

    async def _interrogate(self, request: web.Request) -> web.Response:
        body = await request.json()
        _decoded(body.get("image", ""))
        if body.get("model") not in ("clip", "deepdanbooru"):
            raise Failure("HTTPException", status=404, detail="Model not found")
        return _json({"caption": "a small square"})

    async def _png_info(self, request: web.Request) -> web.Response:
        _decoded((await request.json()).get("image", ""))
        return _json({"info": "a cat\nSteps: 20", "items": {}, "parameters": {"Steps": "20"}})


@contextlib.contextmanager
def in_thread(double: A1111Double) -> Iterator[A1111Double]:
    """The double in a thread of its own, for whoever blocks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(double.__aenter__(), loop).result(30)
        yield double
    finally:
        loop.call_soon_threadsafe(double.gate.set)
        asyncio.run_coroutine_threadsafe(double.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


def _telling(value: Any) -> Handler:
    async def tell(request: web.Request) -> web.Response:
        return _json(value() if callable(value) else value)

    return tell


def _json(value: Any) -> web.Response:
    return web.json_response(value)


def _defaults() -> dict[str, Any]:
    return {
        "prompt": "", "seed": -1, "batch_size": 1, "n_iter": 1, "steps": 50, "cfg_scale": 7.0, "width": 512,
        "height": 512, "sampler_name": None, "sampler_index": "Euler", "override_settings": {}, "alwayson_scripts": {},
        "send_images": True, "script_name": None,
    }  # fmt: skip


def _validate(body: dict[str, Any], needs_image: bool) -> None:
    if not isinstance(body["width"], int):
        problem = {"type": "int_parsing", "loc": ["body", "width"], "msg": "Input should be a valid integer"}
        raise Failure("", status=422, detail=[problem])
    if (body["sampler_name"] or body["sampler_index"]) not in SAMPLERS:
        raise Failure("HTTPException", status=404, detail="Sampler not found")
    if body["script_name"] and body["script_name"].lower() not in SCRIPTS:
        raise Failure("HTTPException", status=422, detail=f"Script '{body['script_name']}' not found")
    for name in body["alwayson_scripts"]:
        if name.lower() not in ALWAYS_ON:
            raise Failure("HTTPException", status=422, detail=f"always on script {name} not found")
    if needs_image:
        if not body.get("init_images"):
            raise Failure("HTTPException", status=404, detail="Init image not found")
        for image in (*body["init_images"], *([body["mask"]] if body.get("mask") else [])):
            _decoded(image)


def _decoded(text: str) -> bytes:
    if text.startswith(("http://", "https://")):
        raise Failure("HTTPException", status=500, detail="Requests not allowed")
    if text.startswith("data:image/"):
        text = text.split(";")[1].split(",")[1]
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        data = b""
    if not data.startswith((b"\x89PNG", b"\xff\xd8", b"RIFF")):
        raise Failure("HTTPException", status=500, detail="Invalid encoded image")
    return data


def _result(body: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    count = body["batch_size"] * body["n_iter"]
    first = random.getrandbits(24) if body["seed"] == -1 else body["seed"]
    seeds = [first + i for i in range(count)]
    images = [picture(seed) for seed in seeds]
    has_grid = count > 1 and options["return_grid"]
    texts = [f"{body['prompt']}\nSteps: {body['steps']}, Seed: {seed}" for seed in seeds]
    info = {
        "prompt": body["prompt"], "seed": seeds[0], "all_seeds": seeds, "sampler_name": body["sampler_name"] or "Euler",
        "steps": body["steps"], "cfg_scale": body["cfg_scale"], "width": body["width"], "height": body["height"],
        "batch_size": body["batch_size"], "sd_model_name": options["sd_model_checkpoint"].split(".")[0],
        "sd_vae_name": options["sd_vae"], "infotexts": texts[:1] * has_grid + texts,
        "index_of_first_image": int(has_grid), "job_timestamp": "20260101000000",
    }  # fmt: skip
    if "ControlNet" in body["alwayson_scripts"]:
        images += [picture(0)] * len(body["alwayson_scripts"]["ControlNet"]["args"])
    return {"images": images[:1] * has_grid + images, "parameters": body, "info": json.dumps(info)}
