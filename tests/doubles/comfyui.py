"""A double of ComfyUI 0.3.64: the HTTP routes and WebSocket messages of its queue, message by message.

    python tests/doubles/comfyui.py --port 8188 [--directory DIR]

It executes `EmptyImage`, `ImageInvert`, `LoadImage`, `SaveImage` for real (small PNGs), sleeps and fails on demand
(nodes `Sleep`, `RaiseError`, `BlockExecution`), and counts what a good client must not do twice or to others:
`GET /double/counts`. Source: `server.py`, `execution.py`, `main.py` of that version, and a running one.

`POST /double/die` `{"at": [N, …]}`: the process kills itself at its N-th message from then on, and in its next lives
at theirs. A message is what it is asked or tells, in its parts: a request, the middle of a body, before and after the
answer, a frame of a WebSocket.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import heapq
import itertools
import json
import mimetypes
import os
import re
import signal
import ssl
import struct
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, Self

from aiohttp import WSMsgType, web

sys.path.append(str(Path(__file__).parent))  # as a program this file's folder is no package
from comfyui_graph import CHECKPOINTS, CLASSES, Graph, is_link, judge, object_info

from empd.cli.demo.png import Picture, decode, encode

VERSION = "0.3.64"
FEATURES = {"supports_preview_metadata": True, "max_upload_size": 104857600}
FOLDERS = ("output", "input", "temp")
VRAM_BYTES = 24 << 30
INVERTED = bytes(range(255, -1, -1))


class Interrupted(Exception):
    """The running prompt was asked to stop."""


class NodeFailed(Exception):
    """A node raised; `kind` is the full name of the exception's type."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Item(NamedTuple):
    """One prompt of the queue, as `/queue` shows it."""

    number: float
    prompt_id: str
    graph: Graph
    extra: dict[str, Any]
    outputs: list[str]


class Counts:
    """What clients did."""

    def __init__(self) -> None:
        self.submissions: Counter[str] = Counter()
        self.started: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.interrupted: list[str] = []
        self.interrupts_targeted = 0
        self.interrupts_global = 0
        self.deleted: list[str] = []
        self.deaf_submissions = 0
        """Prompts whose client had no socket open when they were submitted: their messages go nowhere."""
        self.views = 0
        self.uploads: list[str] = []
        self.freed: list[dict[str, Any]] = []
        self.sockets_max = 0
        self.client_hosts: Counter[str] = Counter()
        """Submissions by `extra_data.worker`, where a test sends it."""


class Fate:
    """At which message the process kills itself; `path` keeps what is due in its next lives."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left = 0
        self.messages = 0
        self.take()

    def take(self) -> None:
        """The next number that is due becomes this life's."""
        if self._path.exists():
            self._left, *rest = json.loads(self._path.read_text())
            self._path.write_text(json.dumps(rest)) if rest else self._path.unlink()

    @property
    def is_doomed(self) -> bool:
        """Another death is due, in this life or a later one."""
        return self._left > 0 or self._path.exists()

    def decide(self, numbers: list[int]) -> None:
        """As `/double/die` says; none: it lives on."""
        self._left = self.messages = 0
        self._path.unlink(missing_ok=True)
        if numbers:
            self._path.write_text(json.dumps(numbers))
            self.take()

    def message(self) -> None:
        """One has come or is about to go."""
        self.messages += 1
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class ComfyUIDouble:
    """The server. `legacy`: as versions before `progress_state`, `display_node` and previews with metadata.

    `token`: a proxy in front asks for this Authorization header. `history_delay_s`: between `execution_success` and
    the entry in the history.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int = 0,
        legacy: bool = False,
        token: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._temporary = None if directory else tempfile.TemporaryDirectory(prefix="comfyui-")
        self.directory = Path(directory or self._temporary.name)
        for folder in FOLDERS:
            (self.directory / folder).mkdir(parents=True, exist_ok=True)
        self.port = port
        self.legacy = legacy
        self.token = token
        self.tls = tls
        self.history_delay_s = 0.002
        self.connections = 0
        self.deaf = False
        """Sends no messages any more, as after the reconnect trap."""
        self.forgetful = False
        """Someone clears the history all the time."""
        self.lose_answers = 0
        """So many prompts are taken without an answer: the connection breaks."""
        self.refuse_prompts = 0
        """The status of every submission."""
        self.refused = 0
        self.own_ids = False
        """As before clients could choose the ids of their prompts."""
        self.fail_next: list[int] = []
        """Statuses that the next requests get, whatever they ask."""
        self.counts = Counts()
        self.fate = Fate(self.directory / "die.json")
        self._files = itertools.count(1)
        self._forget()
        self._runner: web.AppRunner | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def _forget(self) -> None:
        """All that ComfyUI keeps in memory only."""
        self.queue: list[tuple[float, int, Item]] = []
        self.running: Item | None = None
        self.history: dict[str, dict[str, Any]] = {}
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.features: dict[str, dict[str, Any]] = {}
        self.client_id: str | None = None
        self.last_node_id: str | None = None
        self.messages: asyncio.Queue[tuple[Any, Any, str | None]] = asyncio.Queue()
        self._number = 0
        self._order = itertools.count()
        self._cache: dict[str, tuple[Any, dict[str, Any] | None]] = {}
        self._interrupt = False
        self._arrived = asyncio.Event()

    # --- its life ---

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()
        if self._temporary is not None:
            self._temporary.cleanup()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listens and works."""
        app = web.Application(client_max_size=FEATURES["max_upload_size"], middlewares=[self._guard])
        for method, path, handler in self._routes():
            app.router.add_route(method, path, handler)
            app.router.add_route(method, f"/api{path}", handler)
        app.router.add_get("/double/counts", self._get_counts)
        app.router.add_post("/double/die", self._post_die)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self._tasks = [asyncio.create_task(self._publish()), asyncio.create_task(self._work())]

    async def stop(self) -> None:
        """As a kill: whatever ran is gone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        sockets, self.sockets = self.sockets, {}
        for socket in sockets.values():
            if (transport := socket._req and socket._req.transport) is not None:
                transport.abort()
        if self._runner is not None:
            await self._runner.cleanup()
        self._forget()

    async def restart(self, down_s: float = 0.0) -> None:
        """Ends and begins again on the same port, with an empty queue and history."""
        await self.stop()
        await asyncio.sleep(down_s)
        await self.start()

    def _routes(self) -> list[tuple[str, str, Any]]:
        return [
            ("GET", "/ws", self._ws),
            ("GET", "/prompt", self._get_prompt),
            ("POST", "/prompt", self._post_prompt),
            ("GET", "/queue", self._get_queue),
            ("POST", "/queue", self._post_queue),
            ("POST", "/interrupt", self._post_interrupt),
            ("GET", "/history", self._get_history),
            ("POST", "/history", self._post_history),
            ("GET", "/history/{prompt_id}", self._get_history_of),
            ("GET", "/view", self._get_view),
            ("POST", "/upload/image", self._post_upload),
            ("GET", "/system_stats", self._get_stats),
            ("GET", "/object_info", self._get_object_info),
            ("GET", "/object_info/{name}", self._get_object_info_of),
            ("GET", "/models", self._get_models),
            ("GET", "/models/{folder}", self._get_models_of),
            ("GET", "/features", self._get_features),
            ("POST", "/free", self._post_free),
        ]

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        origin = request.headers.get("Origin", "")
        if origin and origin.partition("://")[2] != request.headers.get("Host"):
            return web.Response(status=403)
        if self.token and request.headers.get("Authorization") != self.token:
            return web.json_response({"message": "who are you"}, status=401)
        if self.fail_next and not request.path.startswith("/double"):
            return web.Response(status=self.fail_next.pop(0), text="not now")
        if request.path.startswith("/double"):
            return await handler(request)
        self.fate.message()
        answer = await handler(request)
        self.fate.message()
        return answer

    # --- messages ---

    def send(self, event: Any, data: Any, sid: str | None = None) -> None:
        """Queues a message for one client, or for all."""
        self.messages.put_nowait((event, data, sid))

    async def _publish(self) -> None:
        while True:
            event, data, sid = await self.messages.get()
            if self.deaf:
                continue
            targets = list(self.sockets.values()) if sid is None else [self.sockets.get(sid)]
            for socket in targets:
                if socket is not None:
                    self.fate.message()
                    with contextlib.suppress(ConnectionError, RuntimeError):
                        if isinstance(event, int):
                            await socket.send_bytes(struct.pack(">I", event) + data)
                        else:
                            await socket.send_json({"type": event, "data": data})

    def _queue_info(self) -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": len(self.queue) + (self.running is not None)}}

    def queue_updated(self) -> None:
        """The broadcast at every change of the queue."""
        self.send("status", {"status": self._queue_info()})

    async def _ws(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sid = request.query.get("clientId", "")
        if sid:
            self.sockets.pop(sid, None)
        else:
            sid = uuid.uuid4().hex
        self.sockets[sid] = socket
        self.connections += 1
        self.features[sid] = {}
        self.counts.sockets_max = max(self.counts.sockets_max, len(self.sockets))
        try:
            self.send("status", {"status": self._queue_info(), "sid": sid}, sid)
            if self.client_id == sid and self.last_node_id is not None:
                self.send("executing", {"node": self.last_node_id}, sid)
            first = True
            async for message in socket:
                self.fate.message()
                if message.type is WSMsgType.TEXT:
                    said = json.loads(message.data)
                    if first and said.get("type") == "feature_flags" and not self.legacy:
                        self.features[sid] = said.get("data", {})
                        self.send("feature_flags", FEATURES, sid)
                    first = False
        finally:
            # By id, not by socket, as ComfyUI does: a second socket of the same id is forgotten with the first.
            self.sockets.pop(sid, None)
            self.features.pop(sid, None)
        return socket

    # --- the queue ---

    async def _get_prompt(self, request: web.Request) -> web.Response:
        return web.json_response(self._queue_info())

    async def _post_prompt(self, request: web.Request) -> web.Response:
        if self.refuse_prompts:
            self.refused += 1
            return web.Response(status=self.refuse_prompts)
        try:
            body = await request.json()
            if "prompt" not in body:
                text = "No prompt provided"
                error = {"type": "no_prompt", "message": text, "details": text, "extra_info": {}}
                return web.json_response({"error": error, "node_errors": {}}, status=400)
            number = body.get("number")
            if number is None:
                number = -self._number if body.get("front") else self._number
                self._number += 1
            verdict = judge(body["prompt"], body.get("partial_execution_targets"), self._is_input)
        except (ValueError, TypeError, AttributeError):
            return web.Response(status=500, text="500 Internal Server Error\n\nServer got itself in trouble")
        if verdict.error is not None:
            return web.json_response({"error": verdict.error, "node_errors": verdict.node_errors}, status=400)
        extra = dict(body.get("extra_data") or {})
        if "client_id" in body:
            extra["client_id"] = body["client_id"]
        prompt_id = str(uuid.uuid4() if self.own_ids else body.get("prompt_id", uuid.uuid4()))
        self.counts.submissions[prompt_id] += 1
        self.counts.deaf_submissions += extra.get("client_id") not in self.sockets
        self.counts.client_hosts[str(extra.get("worker", ""))] += 1
        item = Item(number, prompt_id, body["prompt"], extra, verdict.outputs)
        heapq.heappush(self.queue, (number, next(self._order), item))
        self.queue_updated()
        self._arrived.set()
        if self.lose_answers:
            self.lose_answers -= 1
            request.transport.abort()
        return web.json_response({"prompt_id": prompt_id, "number": number, "node_errors": verdict.node_errors})

    async def _get_queue(self, request: web.Request) -> web.Response:
        running = [list(self.running)] if self.running else []
        return web.json_response({"queue_running": running, "queue_pending": [list(e[2]) for e in self.queue]})

    async def _post_queue(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("clear"):
            self.queue = []
            self.queue_updated()
        for prompt_id in body.get("delete", ()):
            found = next((entry for entry in self.queue if entry[2].prompt_id == prompt_id), None)
            if found:
                self.queue.remove(found)
                heapq.heapify(self.queue)
                self.counts.deleted.append(prompt_id)
                self.queue_updated()
        return web.Response()

    async def _post_interrupt(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
        except ValueError:
            body = {}
        target = body.get("prompt_id") if not self.legacy else None
        if target:
            self.counts.interrupts_targeted += 1
            self._interrupt = self._interrupt or (self.running is not None and self.running.prompt_id == target)
        else:
            self.counts.interrupts_global += 1
            self._interrupt = True
        return web.Response()

    async def _get_history(self, request: web.Request) -> web.Response:
        entries = list(self.history.items())
        if "max_items" in request.query:
            count = int(request.query["max_items"])
            offset = int(request.query.get("offset", -1))
            start = len(entries) - count if offset < 0 else offset
            entries = entries[max(0, start) : max(0, start) + count]
        return web.json_response(dict(entries))

    async def _get_history_of(self, request: web.Request) -> web.Response:
        prompt_id = request.match_info["prompt_id"]
        return web.json_response({prompt_id: self.history[prompt_id]} if prompt_id in self.history else {})

    async def _post_history(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("clear"):
            self.history.clear()
        for prompt_id in body.get("delete", ()):
            self.history.pop(prompt_id, None)
        return web.Response()

    # --- files ---

    def _is_input(self, name: Any) -> bool:
        return isinstance(name, str) and (self.directory / "input" / name).is_file()

    async def _get_view(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        if "filename" not in query:
            return web.Response(status=404)
        filename = query["filename"]
        if not filename or filename[0] == "/" or ".." in filename or query.get("type", "output") not in FOLDERS:
            return web.Response(status=400)
        base = self.directory / query.get("type", "output")
        folder = Path(os.path.normpath(base / query.get("subfolder", "")))
        if os.path.commonpath((folder, base)) != str(base):
            return web.Response(status=403)
        path = folder / Path(filename).name
        if not path.is_file():
            return web.Response(status=404)
        self.counts.views += 1
        data = path.read_bytes()
        headers = {"Content-Disposition": f'filename="{path.name}"', "Content-Length": str(len(data))}
        answer = web.StreamResponse(headers=headers)
        answer.content_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        await answer.prepare(request)
        await answer.write(data[: len(data) // 2])
        self.fate.message()
        await answer.write(data[len(data) // 2 :])
        return answer

    async def _post_upload(self, request: web.Request) -> web.Response:
        post = await request.post()
        image = post.get("image")
        if not isinstance(image, web.FileField):
            return web.Response(status=500 if image is not None else 400)
        kind = str(post.get("type", "input"))
        if kind not in FOLDERS:
            return web.Response(status=500)
        base = self.directory / kind
        subfolder = str(post.get("subfolder", ""))
        path = Path(os.path.normpath(base / subfolder / image.filename))
        if os.path.commonpath((path, base)) != str(base):
            return web.Response(status=400)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = image.file.read()
        stem, suffix = path.stem, path.suffix
        copy = 1
        while post.get("overwrite") not in ("true", "1") and path.exists() and path.read_bytes() != data:
            path = path.with_name(f"{stem} ({copy}){suffix}")
            copy += 1
        path.write_bytes(data)
        self.counts.uploads.append(path.name)
        return web.json_response({"name": path.name, "subfolder": subfolder, "type": kind})

    # --- what it says of itself ---

    async def _get_stats(self, request: web.Request) -> web.Response:
        system = {"os": "posix", "ram_total": 64 << 30, "ram_free": 40 << 30, "comfyui_version": VERSION}
        system |= {"python_version": sys.version, "pytorch_version": "2.8.0+cu128", "argv": sys.argv}
        device = {"name": "cuda:0 Double", "type": "cuda", "index": 0}
        device |= {"vram_total": VRAM_BYTES, "vram_free": VRAM_BYTES - (6 << 30)}
        device |= {"torch_vram_total": 6 << 30, "torch_vram_free": 1 << 30}
        return web.json_response({"system": system, "devices": [device]})

    async def _get_object_info(self, request: web.Request) -> web.Response:
        return web.json_response({name: object_info(name) for name in CLASSES})

    async def _get_object_info_of(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.json_response({name: object_info(name)} if name in CLASSES else {})

    async def _get_models(self, request: web.Request) -> web.Response:
        return web.json_response(["checkpoints", "loras"])

    async def _get_models_of(self, request: web.Request) -> web.Response:
        folder = request.match_info["folder"]
        return web.json_response(CHECKPOINTS if folder == "checkpoints" else [], status=200 if folder != "x" else 404)

    async def _get_features(self, request: web.Request) -> web.Response:
        return web.json_response(FEATURES)

    async def _post_free(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.counts.freed.append(body)
        if body.get("free_memory"):
            self._cache.clear()
        return web.Response()

    async def _post_die(self, request: web.Request) -> web.Response:
        self.fate.decide((await request.json())["at"])
        return web.json_response({})

    async def _get_counts(self, request: web.Request) -> web.Response:
        about = {"pid": os.getpid(), "messages": self.fate.messages, "doomed": self.fate.is_doomed}
        return web.json_response(vars(self.counts) | about)

    # --- execution ---

    async def _work(self) -> None:
        while True:
            while not self.queue:
                self._arrived.clear()
                await self._arrived.wait()
            self.running = heapq.heappop(self.queue)[2]
            self.queue_updated()
            run = Run(self, self.running)
            entry = await run.execute()
            await asyncio.sleep(self.history_delay_s)
            if not self.forgetful:
                self.history[self.running.prompt_id] = entry
            self.counts.finished[self.running.prompt_id] += 1
            self.running = None
            self.queue_updated()
            if self.client_id is not None:
                self.send("executing", {"node": None, "prompt_id": run.prompt_id}, self.client_id)

    def check_interrupt(self) -> None:
        """Where a node looks whether it is to stop."""
        if self._interrupt:
            self._interrupt = False
            raise Interrupted

    def begin(self) -> None:
        """An interrupt that came while nothing ran is forgotten."""
        self._interrupt = False

    def cached(self, signatures: dict[str, str]) -> dict[str, tuple[Any, dict[str, Any] | None]]:
        """What of a graph is known from the prompt before; the rest is dropped."""
        self._cache = {key: self._cache[key] for key in set(signatures.values()) & self._cache.keys()}
        return {node: self._cache[key] for node, key in signatures.items() if key in self._cache}

    def keep(self, signature: str, value: Any, shown: dict[str, Any] | None) -> None:
        """Remembers a node's output for the next prompt."""
        self._cache[signature] = (value, shown)

    def write(self, prefix: str, suffix: str, data: bytes, folder: str = "output") -> dict[str, str]:
        """A file as save nodes name it: `subfolder/prefix_00001_.png`."""
        subfolder, _, stem = prefix.rpartition("/")
        path = self.directory / folder / subfolder / f"{stem}_{next(self._files):05}_{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return {"filename": path.name, "subfolder": subfolder, "type": folder}


class Run:
    """One prompt being executed."""

    def __init__(self, server: ComfyUIDouble, item: Item) -> None:
        self.server = server
        self.prompt_id = item.prompt_id
        self.graph = item.graph
        self.outputs = item.outputs
        server.client_id = item.extra.get("client_id")
        self.messages: list[Any] = []
        self.values: dict[str, Any] = {}
        self.shown: dict[str, dict[str, Any]] = {}
        self.executed: list[str] = []
        self.states: dict[str, dict[str, Any]] = {}

    def say(self, event: str, data: dict[str, Any], *, broadcast: bool = False) -> None:
        """A message that is also kept in the history."""
        data = {**data, "timestamp": int(time.time() * 1000)}
        self.messages.append([event, data])
        if self.server.client_id is not None or broadcast:
            self.server.send(event, data, self.server.client_id)

    def tell(self, event: str, data: dict[str, Any]) -> None:
        """A message for the client, if the prompt has one."""
        if self.server.client_id is not None:
            self.server.send(event, data, self.server.client_id)

    async def execute(self) -> dict[str, Any]:
        """The prompt's entry in the history."""
        server, prompt_id = self.server, self.prompt_id
        server.begin()
        server.counts.started[prompt_id] += 1
        self.say("execution_start", {"prompt_id": prompt_id})
        signatures = {node: self._signature(node) for node in self.graph}
        cached = server.cached(signatures)
        self.say("execution_cached", {"nodes": list(cached), "prompt_id": prompt_id})
        succeeded = False
        node = ""
        try:
            for node in self._order(cached):
                if node in cached:
                    self.values[node], shown = cached[node]
                    if shown is not None:
                        self.shown[node] = shown
                    self._tell_executed(node, shown)
                    self._progress(node, 1, 1, "finished")
                else:
                    await self._run_node(node, signatures[node])
            succeeded = True
            self.say("execution_success", {"prompt_id": prompt_id})
        except Interrupted:
            server.counts.interrupted.append(prompt_id)
            self.say("execution_interrupted", self._about(node), broadcast=True)
        except Exception as error:  # a node may raise anything, here as there
            kind = error.kind if isinstance(error, NodeFailed) else type(error).__name__
            more = {"exception_message": f"{error}\n", "exception_type": kind, "traceback": ["  File …\n"]}
            more |= {"current_inputs": {}, "current_outputs": list(self.values)}
            self.say("execution_error", self._about(node) | more)
        server.last_node_id = None
        status = {"status_str": "success" if succeeded else "error", "completed": succeeded, "messages": self.messages}
        meta = {node: {"node_id": node, "display_node": node, "parent_node": None} for node in self.shown}
        prompt = [0, prompt_id, self.graph, {"client_id": server.client_id}, self.outputs]
        return {"prompt": prompt, "outputs": self.shown, "status": status, "meta": meta}

    def _about(self, node: str) -> dict[str, Any]:
        about = {"prompt_id": self.prompt_id, "node_id": node, "node_type": self.graph[node]["class_type"]}
        return about | {"executed": list(self.executed)}

    def _signature(self, node: str) -> str:
        inputs = {
            name: ["link", self._signature(value[0]), value[1]] if is_link(value) else value
            for name, value in self.graph[node]["inputs"].items()
        }
        text = json.dumps([self.graph[node]["class_type"], inputs], sort_keys=True)
        return hashlib.blake2b(text.encode()).hexdigest()

    def _order(self, cached: dict[str, Any]) -> list[str]:
        order: list[str] = []

        def visit(node: str) -> None:
            if node in order:
                return
            if node not in cached:
                for value in self.graph[node]["inputs"].values():
                    if is_link(value):
                        visit(value[0])
            order.append(node)

        for output in self.outputs:
            visit(output)
        return [node for node in order if node not in cached or node in self.outputs or self._is_wanted(node, cached)]

    def _is_wanted(self, node: str, cached: dict[str, Any]) -> bool:
        """A cached node is brought up silently when one that runs needs it."""
        self.values[node] = cached[node][0]
        return False

    async def _run_node(self, node: str, signature: str) -> None:
        self._progress(node, 0, 1, "running")
        self.server.last_node_id = node
        self.tell("executing", {"node": node, "display_node": node, "prompt_id": self.prompt_id})
        self.server.check_interrupt()
        given = self.graph[node]
        inputs = {name: self.values[value[0]] if is_link(value) else value for name, value in given["inputs"].items()}
        value, shown = await Nodes(self, node).run(given["class_type"], inputs)
        if shown is not None:
            self.shown[node] = shown
            self._tell_executed(node, shown)
        self.values[node] = value
        self.server.keep(signature, value, shown)
        self._progress(node, 1, 1, "finished")
        self.executed.append(node)
        await asyncio.sleep(0)

    def _tell_executed(self, node: str, shown: dict[str, Any] | None) -> None:
        display = {} if self.server.legacy else {"display_node": node}
        self.tell("executed", {"node": node, **display, "output": shown, "prompt_id": self.prompt_id})

    def _progress(self, node: str, value: float, most: float, state: str) -> None:
        about = {"value": value, "max": most, "state": state, "node_id": node, "prompt_id": self.prompt_id}
        about |= {"display_node_id": node, "parent_node_id": None, "real_node_id": node}
        self.states[node] = about
        if not self.server.legacy:
            # Without a client these go to everyone: a listener must look at the prompt id.
            self.server.send(
                "progress_state", {"prompt_id": self.prompt_id, "nodes": dict(self.states)}, self.server.client_id
            )

    def step(self, node: str, value: int, most: int, picture: bytes | None) -> None:
        """One step of a node that has several."""
        server = self.server
        self._progress(node, value, most, "running")
        wants_metadata = server.features.get(server.client_id or "", {}).get("supports_preview_metadata")
        if picture is not None and wants_metadata:
            metadata = {"node_id": node, "prompt_id": self.prompt_id, "display_node_id": node, "parent_node_id": None}
            about = json.dumps(metadata | {"real_node_id": node, "image_type": "image/png"}).encode()
            server.send(4, struct.pack(">I", len(about)) + about + picture, server.client_id)
        server.send(
            "progress", {"value": value, "max": most, "prompt_id": self.prompt_id, "node": node}, server.client_id
        )
        if picture is not None and not wants_metadata:
            server.send(1, struct.pack(">I", 2) + picture, server.client_id)


class Nodes:
    """What the node classes do: each gives (value, what is shown of it)."""

    def __init__(self, run: Run, node: str) -> None:
        self.run_of = run
        self.server = run.server
        self.node = node

    async def run(self, name: str, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any] | None]:
        """Runs one node."""
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
        made = getattr(self, words.replace("vhs_", ""))(**inputs)
        return await made if asyncio.iscoroutine(made) else made

    def empty_image(self, width: int, height: int, batch_size: int, color: int) -> Any:
        pixel = color.to_bytes(3, "big")
        return [Picture(width, height, 3, [pixel * width] * height)] * batch_size, None

    def image_invert(self, image: list[Picture]) -> Any:
        return [picture._replace(rows=[row.translate(INVERTED) for row in picture.rows]) for picture in image], None

    async def image_blur(self, image: list[Picture], blur_radius: int, sigma: float) -> Any:
        await asyncio.sleep(0.05)
        return image, None

    def load_image(self, image: str) -> Any:
        return [decode((self.server.directory / "input" / image).read_bytes())], None

    def save_image(self, images: list[Picture], filename_prefix: str) -> Any:
        return [], {"images": [self.server.write(filename_prefix, ".png", encode(picture)) for picture in images]}

    def preview_image(self, images: list[Picture]) -> Any:
        files = [self.server.write("ComfyUI_temp_abcde", ".png", encode(picture), "temp") for picture in images]
        return [], {"images": files}

    def save_image_websocket(self, images: list[Picture]) -> Any:
        for at, picture in enumerate(images):
            self.run_of.step(self.node, at, len(images), encode(picture))
        return [], None

    def save_animated_webp(self, images: list[Picture], filename_prefix: str, **options: Any) -> Any:
        return [], {"images": [self.server.write(filename_prefix, ".webp", _webp())], "animated": [True]}

    def video_combine(self, images: list[Picture], filename_prefix: str) -> Any:
        named = self.server.write(filename_prefix, ".mp4", _mp4())
        path = str(self.server.directory / "output" / named["subfolder"] / named["filename"])
        return [], {"gifs": [named | {"format": "video/h264-mp4", "frame_rate": 8.0, "fullpath": path}]}

    def save_video(self, images: list[Picture], filename_prefix: str) -> Any:
        return [], {"images": [self.server.write(filename_prefix, ".mp4", _mp4())], "animated": [True]}

    def save_audio(self, seconds: float, filename_prefix: str) -> Any:
        return [], {"audio": [self.server.write(filename_prefix, ".flac", b"fLaC" + bytes(64))]}

    def preview_any(self, source: Any) -> Any:
        return [], {"text": [str(source)]}

    def checkpoint_loader_simple(self, ckpt_name: str) -> Any:
        return ckpt_name, None

    async def sleep(
        self, image: list[Picture], seconds: float, steps: int, previews: bool = False, seed: int = 0
    ) -> Any:
        picture = encode(Picture(8, 8, 3, [bytes([seed & 255]) * 24] * 8)) if previews else None
        for step in range(1, steps + 1):
            await asyncio.sleep(seconds / steps)
            self.server.check_interrupt()
            self.run_of.step(self.node, step, steps, picture)
        return image, None

    def raise_error(self, image: list[Picture], exception_type: str, message: str) -> Any:
        raise NodeFailed(exception_type, message)

    def block_execution(self, image: list[Picture], message: str) -> Any:
        """A blocked branch is an `execution_error` of a prompt that goes on and ends well."""
        more = {"exception_message": f"Execution Blocked: {message}", "exception_type": "ExecutionBlocked"}
        more |= {"traceback": [], "current_inputs": [], "current_outputs": []}
        self.run_of.tell("execution_error", self.run_of._about(self.node) | more)
        return image, None

    def make_grid(self, image: list[Picture]) -> Any:
        return image, {"grid": [{"columns": 1, "rows": len(image)}], "note": ["one column"]}


def _webp() -> bytes:
    return b"RIFF" + struct.pack("<I", 36) + b"WEBPVP8X" + bytes(28)


def _mp4() -> bytes:
    return struct.pack(">I", 24) + b"ftypmp42" + bytes(4) + b"mp42isom" + bytes(64)


def main() -> None:
    """Runs until it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--legacy", action="store_true")
    options, _ = parser.parse_known_args()

    async def serve() -> None:
        async with ComfyUIDouble(options.directory, port=options.port, legacy=options.legacy):
            await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


if __name__ == "__main__":
    main()
