"""A double of Automatic1111's WebUI that speaks its REST API as 1.10.1 does, the awkward parts included; proved against
that server by `make test-a1111`.

One task at a time behind a lock; state and interrupt of the whole server, which names no task: only the routes of its
page know one by its id. A task that failed stays the current one, and one whose picture cannot be read stays in the
queue, both until the server ends. An interrupted call answers 200 with what there is. What it does not know by name
(sampler, scheduler, VAE, checkpoint) it replaces without a word. `info` is JSON within JSON.
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

from aiohttp import web

from empd.cli.demo.png import Picture, encode

MODELS = [
    {"title": "dream.safetensors [0123456789]", "model_name": "dream", "hash": "0123456789", "sha256": "ab" * 32},
    {"title": "paint.safetensors [9876543210]", "model_name": "paint", "hash": "9876543210", "sha256": "cd" * 32},
]
SAMPLERS = {"DPM++ 2M": ["k_dpmpp_2m"], "Euler a": ["k_euler_a", "k_euler_ancestral"], "Euler": ["k_euler"]}
"""With their aliases; the first is the one that takes the place of an unknown one."""

SCHEDULERS = {"automatic": "Automatic", "karras": "Karras"}
LORAS = {"ink": "ink", "wash": "Water colours"}
"""With their aliases."""

UPSCALERS = ("None", "Lanczos")
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
        self.options = {
            "sd_model_checkpoint": MODELS[0]["title"], "sd_checkpoint_hash": MODELS[0]["sha256"], "sd_vae": "Automatic",
            "return_grid": True, "CLIP_stop_at_last_layers": 1,
        }  # fmt: skip
        self.current: str | None = None
        self.pending: list[str] = []
        self.started: list[str] = []
        self.finished: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.interrupts: list[str | None] = []
        self.unloads = 0
        self.lacking: set[str] = set()  # lists that it does not have, as other versions do not
        self.guarded = False  # whether a proxy in front lets nobody see its page
        self.takes_ids = True  # as it does since 1.8
        self.captions = True  # whether it has the models that questions need
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
        for name in ("refresh-checkpoints", "refresh-vae", "refresh-embeddings"):
            post(f"/sdapi/v1/{name}", _telling(None))
        post("/sdapi/v1/reload-checkpoint", _telling({}))
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
            "samplers": [{"name": name, "aliases": aliases, "options": {}} for name, aliases in SAMPLERS.items()],
            "schedulers": [
                {"name": name, "label": label, "aliases": None, "default_rho": -1.0}
                for name, label in SCHEDULERS.items()
            ],
            "upscalers": [{"name": name, "model_name": None, "scale": 4} for name in UPSCALERS],
            "latent-upscale-modes": [{"name": "Latent"}],
            "sd-vae": [{"model_name": "fine.vae.pt", "filename": "/vae/fine.vae.pt"}],
            "loras": [
                {"name": name, "alias": alias, "path": f"/loras/{name}.safetensors", "metadata": {}}
                for name, alias in LORAS.items()
            ],
            "embeddings": {"loaded": {}, "skipped": {}},
            "scripts": {"txt2img": [*SCRIPTS, *ALWAYS_ON], "img2img": [*SCRIPTS, *ALWAYS_ON]},
            "script-info": [],
            "extensions": [],
            "cmd-flags": lambda: {"api": True, "api_auth": f"user:{self.auth}" if self.auth else None},
            "memory": {
                "ram": {"free": 1, "used": 1, "total": 2},
                "cuda": {"system": {"free": 3 << 30, "total": 8 << 30}},
            },
        }

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """As `api_middleware`: credentials, the form of errors."""
        if self.auth and request.path.startswith("/sdapi") and (problem := self._refused(request)):
            body = {"error": "HTTPException", "detail": problem, "body": "", "errors": ""}
            return web.json_response(body, status=401)
        try:
            if request.path.startswith("/internal") and self.guarded:
                raise web.HTTPForbidden
            if (request.path.startswith("/internal") and not self.page) or request.path.rpartition("/")[
                2
            ] in self.lacking:
                raise web.HTTPNotFound
            answer = await handler(request)
        except Failure as failure:
            body = {"error": failure.name, "detail": failure.detail, "body": "", "errors": str(failure)}
            if not failure.name:
                body = {"detail": failure.detail}  # FastAPI's own
            return web.json_response(body, status=failure.status)
        except web.HTTPNotFound:
            return web.json_response({"detail": "Not Found"}, status=404)
        except web.HTTPForbidden:
            return web.Response(text="<html>no</html>", status=403)
        answer.headers["X-Process-Time"] = "0.0"
        return answer

    def _refused(self, request: web.Request) -> str:
        if "Authorization" not in request.headers:
            return "Not authenticated"
        wanted = base64.b64encode(f"user:{self.auth}".encode()).decode()
        return "" if request.headers["Authorization"] == f"Basic {wanted}" else "Incorrect username or password"

    # --- pictures ---

    async def _generate(self, request: web.Request) -> web.Response:
        body = _defaults() | await request.json()
        self.bodies.append(body)
        body["steps"] = min(body["steps"], self.steps_max or body["steps"])
        changes = request.path.endswith("img2img")
        _validate(body, changes)
        task = (self.takes_ids and body.get("force_task_id")) or f"task(txt2img-{random.getrandbits(32):x})"
        self.pending.append(task)
        async with self._lock:
            for image in body["init_images"] if changes else ():
                _decoded(image)  # what fails here leaves its task in the queue
            self.pending.remove(task)
            return await self._run(task, body)

    def _begin(self, job: str, count: int) -> None:
        self._state |= {"interrupted": False, "skipped": False, "job": job, "job_count": count, "job_no": 0}
        self._state |= {"sampling_step": 0}
        self._began_s = time.monotonic()
        self._preview = 0

    async def _run(self, task: str, body: dict[str, Any]) -> web.Response:
        self._begin("scripts_txt2img", -1)
        self.current = task
        self.started.append(task)
        before = dict(self.options)
        try:
            self._override(body["override_settings"] or {})
            if self.failing is not None:
                raise self.failing
            await asyncio.sleep(self.step_s)
            passes, done = 1 + bool(body.get("enable_hr")), 0
            self._state |= {"job_count": body["n_iter"] * passes}
            for number in range(self._state["job_count"]):
                if self._state["interrupted"]:
                    break
                self._state |= {"job_no": number, "sampling_step": 0, "sampling_steps": body["steps"]}
                await self._steps(body["steps"])
                done = number // passes + 1
            self.current = None
            self.finished.append(task)
            return _json(_result(body, self.options, done * body["batch_size"]))
        finally:
            if body["override_settings_restore_afterwards"]:  # the model stays, and the setting that says which it is
                self.options = before | {"sd_checkpoint_hash": self.options["sd_checkpoint_hash"]}
            self._state |= {"job": "", "job_count": 0}

    async def _steps(self, steps: int) -> None:
        for step in range(steps):
            if self._state["interrupted"]:
                return
            self._state["sampling_step"] = step
            self._preview += 1
            await self.gate.wait()
            await asyncio.sleep(self.step_s)

    def _override(self, override: dict[str, Any]) -> None:
        """Loads the model that is named, or the one of the settings in place of one that it does not know."""
        _known_settings(override, self.options)
        model = _model(override.get("sd_model_checkpoint")) or _model(self.options["sd_model_checkpoint"])
        assert model is not None
        self.options |= override | {"sd_model_checkpoint": model["title"], "sd_checkpoint_hash": model["sha256"]}

    async def _interrupt(self, request: web.Request) -> web.Response:
        self.interrupts.append(self.current if self._state["job_count"] else None)
        self._state["interrupted"] = True
        return _json({})

    # --- progress ---

    def _fraction(self) -> float:
        state, done = self._state, 0.0
        if state["job_count"] > 0:
            done += state["job_no"] / state["job_count"]
            if state["sampling_steps"] > 0:
                done += 1 / state["job_count"] * state["sampling_step"] / state["sampling_steps"]
        return min(done, 1.0)

    def _eta_s(self, fraction: float) -> float:
        if self.eta_s is not None:
            return self.eta_s
        elapsed_s = time.monotonic() - self._began_s
        return elapsed_s / fraction - elapsed_s

    async def _progress(self, request: web.Request) -> web.Response:
        """Of the whole server. Its code means to name the task, as `current_task`, and does not."""
        self.looks += 1
        busy = self._state["job_count"] != 0
        wanted = busy and request.query.get("skip_current_image") != "true" and self._preview
        fraction = min(1.0, self._fraction() + 0.01) if busy else 0.0
        return _json(
            {
                "progress": fraction,
                "eta_relative": self._eta_s(fraction) if busy else 0.0,
                "state": self._state,
                "current_image": picture(self._preview) if wanted else None,
                "textinfo": None,
            }
        )

    async def _internal_progress(self, request: web.Request) -> web.Response:
        asked = await request.json()
        task = asked["id_task"]
        active, queued = task == self.current, task in self.pending
        answer = {"active": active, "queued": queued, "completed": task in self.finished[-16:]}
        answer |= {"progress": None, "eta": None, "live_preview": None, "id_live_preview": -1}
        if not active:
            text = f"In queue: {self.pending.index(task) + 1}/{len(self.pending)}" if queued else "Waiting..."
            return _json({**answer, "textinfo": text})
        fraction, known = self._fraction(), asked.get("id_live_preview", -1)
        answer |= {"progress": fraction, "eta": self._eta_s(fraction) if fraction else None, "id_live_preview": known}
        if asked.get("live_preview", True) and self._preview and self._preview != known:
            answer["live_preview"] = f"data:image/png;base64,{picture(self._preview)}"
            answer["id_live_preview"] = self._preview
        return _json({**answer, "textinfo": None})

    # --- the rest ---

    async def _set_options(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        name = wanted.get("sd_model_checkpoint")
        if name is not None and _model(name) is None:
            raise Failure("RuntimeError", f"model {name!r} not found")
        self._override(wanted)
        return web.json_response(None)

    async def _unload(self, request: web.Request) -> web.Response:
        self.unloads += 1
        return _json({})

    async def _extra_single(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        _decoded(body.get("image", ""))
        await self._upscale(body, 1)
        return _json({"html_info": "<p>upscaled</p>", "image": picture(4)})

    async def _extra_batch(self, request: web.Request) -> web.Response:
        body = await request.json()
        for entry in body["imageList"]:
            _decoded(entry["data"])
        await self._upscale(body, len(body["imageList"]))
        return _json({"html_info": "", "images": [picture(i) for i in range(len(body["imageList"]))]})

    async def _upscale(self, body: dict[str, Any], count: int) -> None:
        """A job of the server without a task."""
        async with self._lock:
            self._begin("extras", count)
            try:
                if (name := body.get("upscaler_1", "None")) not in UPSCALERS:
                    raise Failure("AssertionError", f"could not find upscaler named {name}")
                await self.gate.wait()
            finally:
                self._state |= {"job": "", "job_count": 0}

    async def _interrogate(self, request: web.Request) -> web.Response:
        body = await request.json()
        _decoded(body.get("image", ""))
        if body.get("model") not in ("clip", "deepdanbooru"):
            raise Failure("HTTPException", status=404, detail="Model not found")
        return _json({"caption": "a small square" if self.captions else "<error>"})

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
        "height": 512, "sampler_name": None, "sampler_index": "Euler", "scheduler": None, "alwayson_scripts": {},
        "override_settings": None, "override_settings_restore_afterwards": True, "send_images": True,
        "save_images": False, "script_name": None,
    }  # fmt: skip


def _validate(body: dict[str, Any], needs_image: bool) -> None:
    """What is refused before the task is put into the queue."""
    if not isinstance(body["width"], int) and not str(body["width"]).isdecimal():
        problem = {"loc": ["body", "width"], "msg": "value is not a valid integer", "type": "type_error.integer"}
        raise Failure("", status=422, detail=[problem])
    if needs_image:
        if body.get("init_images") is None:
            raise Failure("HTTPException", status=404, detail="Init image not found")
        if body.get("mask"):
            _decoded(body["mask"])
    if body["script_name"] and body["script_name"].lower() not in SCRIPTS:
        raise Failure("HTTPException", status=422, detail=f"Script '{body['script_name']}' not found")
    for name in body["alwayson_scripts"]:
        if name.lower() in SCRIPTS:
            text = "Cannot have a selectable script in the always on scripts params"
            raise Failure("HTTPException", status=422, detail=text)
        if name.lower() not in ALWAYS_ON:
            raise Failure("HTTPException", status=422, detail=f"Script '{name}' not found")


def _known_settings(wanted: dict[str, Any], options: dict[str, Any]) -> None:
    for name in wanted:
        if name not in options:
            raise Failure("KeyError", repr(name))


def _model(name: Any) -> dict[str, str] | None:
    """By any of its aliases."""
    for model in MODELS:
        if name in (model["title"], model["model_name"], model["hash"], model["title"].partition(" ")[0]):
            return model
    return None


def _sampler(body: dict[str, Any]) -> str:
    """The one that is used: by its exact name, with or without a scheduler's behind it, or the first of all."""
    name = str(body["sampler_name"] or body["sampler_index"])
    for label in (*SCHEDULERS, *SCHEDULERS.values()):
        name = name.removesuffix(f" {label}")
    return name if name in SAMPLERS else next(iter(SAMPLERS))


def _decoded(text: str) -> bytes:
    if text.startswith(("http://", "https://")):
        raise Failure("HTTPException", status=500, detail="Request to local resource not allowed")
    if text.startswith("data:image/"):
        text = text.split(";")[1].split(",")[1]
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        data = b""
    if not data.startswith((b"\x89PNG", b"\xff\xd8", b"RIFF")):
        raise Failure("HTTPException", status=500, detail="Invalid encoded image")
    return data


def _result(body: dict[str, Any], options: dict[str, Any], made: int) -> dict[str, Any]:
    """`made`: how many pictures there are; fewer than were asked for after an interrupt."""
    first = random.getrandbits(24) if body["seed"] in (-1, None) else body["seed"]
    seeds = [first + i for i in range(body["batch_size"] * body["n_iter"])]
    images = [picture(seed) for seed in seeds[:made]]
    has_grid = made > 1 and options["return_grid"] and body["save_images"]
    texts = [f"{body['prompt']}\nSteps: {body['steps']}, Seed: {seed}" for seed in seeds[: made or 1]]
    info = {
        "prompt": body["prompt"], "seed": seeds[0], "all_seeds": seeds, "sampler_name": _sampler(body),
        "steps": body["steps"], "cfg_scale": body["cfg_scale"], "width": body["width"], "height": body["height"],
        "batch_size": body["batch_size"], "sd_model_name": options["sd_model_checkpoint"].split(".")[0],
        "sd_model_hash": options["sd_checkpoint_hash"][:10], "sd_vae_name": None, "sd_vae_hash": None,
        "clip_skip": options["CLIP_stop_at_last_layers"], "infotexts": texts[:1] * has_grid + texts,
        "index_of_first_image": int(has_grid), "job_timestamp": "20260101000000", "version": "v1.10.1",
    }  # fmt: skip
    if "ControlNet" in body["alwayson_scripts"]:
        images += [picture(0)] * len(body["alwayson_scripts"]["ControlNet"]["args"])
    sent = images[:1] * has_grid + images if body["send_images"] else []
    return {"images": sent, "parameters": body, "info": json.dumps(info)}
