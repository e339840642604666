"""One request of a job from its input files to its saved outputs."""

from __future__ import annotations

import base64
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from empd.connectors.context import Context
from empd.connectors.failures import BadResponse, ConnectorError, NotFound
from empd.connectors.service.comfyui.host import Host
from empd.connectors.service.comfyui.listener import Heard, Listener
from empd.connectors.service.comfyui.log import ComfyUILog
from empd.connectors.service.comfyui.messages import Message, NodeText, Picture
from empd.connectors.service.comfyui.outputs import Outputs, read_outputs
from empd.connectors.service.comfyui.progress import NodeProgress, describe
from empd.connectors.service.comfyui.prompt import Order, Prompt, earlier_prompt
from empd.connectors.service.comfyui.request import Request
from empd.connectors.service.comfyui.server import Entry, Server, is_unreachable
from empd.connectors.service.comfyui.workflow import fingerprint, models_of, replace_names

SAVING_SHARE = 0.05
"""The part of the percentage that fetching and saving the outputs takes."""

WEBSOCKET_IMAGE = "SaveImageWebsocket"
PREVIEW_INTERVAL_S = 0.5

Report = Callable[[float, str, int, int], None]
Intend = Callable[[str, str], Awaitable[Any]]


class Earlier(NamedTuple):
    """What an earlier attempt left: the id of its prompt, and at which server."""

    prompt_id: str = ""
    url: str = ""


class Label(NamedTuple):
    """What names a run: its prompt's id is `stem`, the epoch, `tail`; `base` is the index of its first output."""

    stem: str
    tail: str = ""
    base: int = 0


class Run:
    """Runs one request; `report` is told how far it is."""

    def __init__(self, host: Host, context: Context, request: Request, label: Label, report: Report) -> None:
        self.prompt: Prompt | None = None
        self.spent = False
        """The prompt has come to an end that is no result: another attempt has to begin anew."""
        self._host = host
        self._context = context
        self._request = request
        self._label = label
        self._report = report
        self._progress = NodeProgress(request.graph)
        self._pictures: list[tuple[str, Picture]] = []
        self._preview_s = 0.0
        self._log = ComfyUILog(workflow_hash=fingerprint(request.graph), model_name=", ".join(models_of(request.graph)))

    async def execute(self, earlier: Earlier, intend: Intend) -> dict[str, Any]:
        """The result: ids, saved outputs, texts, data. `intend(prompt id, url)` is awaited before a submission.

        Raises ConnectorError.
        """
        host, context, request = self._host, self._context, self._request
        server, adopted = await self._place(earlier)
        if adopted is None:
            await self._upload(server)
        order = Order(self._label.stem, self._label.tail, request.graph, request.extra_data, request.allow_partial)
        prompt = self.prompt = Prompt(server, order, host.pace, context)
        self._log.prompt_id = self._log.client_id = adopted or prompt.id
        try:
            entry = await prompt.run(self._listen, adopted, lambda prompt_id: intend(prompt_id, server.url))
            self._emit("ended")
        except ConnectorError as error:
            self.spent = prompt.over
            self._emit("failed", failure=error.failure.value)
            raise
        outputs = read_outputs(entry.outputs, request.nodes, request.temporary_files)
        return self._result(entry, outputs, await self._save(server, entry, outputs))

    async def _place(self, earlier: Earlier) -> tuple[Server, str | None]:
        """The server to use, and the prompt there to take up, if there is one."""
        own = self._host.server()
        if not earlier.url and self._context.attempt == 1:
            return own, None
        # Images that only went over an earlier socket are lost: such a prompt is run again.
        lossy = any(node["class_type"] == WEBSOCKET_IMAGE for node in self._request.graph.values())
        if earlier.url and earlier.url != own.url:
            there = self._host.server(earlier.url)
            try:
                found = await earlier_prompt(there, self._label.stem, earlier.prompt_id, self._context)
            except ConnectorError as error:
                if not is_unreachable(error):
                    raise
                found = None
            if found and not lossy:
                return there, found
            if found:
                await there.stop(found)
        found = await earlier_prompt(own, self._label.stem, earlier.prompt_id, self._context)
        if found and lossy:
            await own.stop(found)
            found = None
        return own, found

    async def _upload(self, server: Server) -> None:
        names = {}
        for name, content in self._request.files.items():
            names[name] = await server.upload(name, content, self._host.input_subfolder, self._context)
        replace_names(self._request.graph, names)

    def _listen(self, server: Server, prompt_id: str) -> Listener:
        return self._host.listener(server.url, prompt_id, self._heard)

    # --- what is heard ---

    def _heard(self, heard: Heard) -> None:
        if isinstance(heard, Picture):
            self._see(heard)
            return
        if isinstance(heard, NodeText):
            self._context.log(heard.text, node=heard.node)
            return
        data = heard.data
        match heard.kind:
            case "status":
                self._log.queue_remaining = _remaining(data)
                return
            case "execution_start":
                self._log.websocket_message_type = heard.kind
                self._emit("started")
            case "execution_cached":
                self._progress.finish(map(str, data.get("nodes", ())))
            case "executing" if data.get("node") is not None:
                self._progress.begin(str(data["node"]))
            case "progress":
                self._progress.step(str(data.get("node") or self._progress.node), data.get("value"), data.get("max"))
            case "progress_state":
                self._progress.states(data.get("nodes") or {})
            case "executed":
                self._progress.finish((str(data.get("node")),))
            case _:
                self._log.websocket_message_type = heard.kind
                return
        self._tell(heard)

    def _tell(self, message: Message) -> None:
        standing = self._progress.standing()
        self._log.websocket_message_type = message.kind
        self._log.node_id, self._log.execution_step = self._progress.node, standing.step
        self._report(standing.fraction * (1 - SAVING_SHARE), standing.message, standing.step, standing.steps)

    def _see(self, picture: Picture) -> None:
        node = picture.node or self._progress.node
        graph = self._request.graph
        if node in graph and graph[node]["class_type"] == WEBSOCKET_IMAGE:
            self._pictures.append((node, picture))
            return
        now_s = time.monotonic()
        if self._host.previews and now_s - self._preview_s >= PREVIEW_INTERVAL_S:
            self._preview_s = now_s
            image = f"data:{picture.media_type};base64,{base64.b64encode(picture.image).decode()}"
            self._context.partial({"kind": "preview", "node": node, "image": image})

    # --- what came of it ---

    async def _save(self, server: Server, entry: Entry, outputs: Outputs) -> list[dict[str, Any]]:
        saved: list[dict[str, Any]] = []
        count = len(outputs.files) + len(self._pictures)
        context, save = self._context, self._context.assets.save
        for file in outputs.files:
            self._report(1 - SAVING_SHARE * (1 - len(saved) / count), f"saving {file.filename}", 0, 0)
            about = self._about(file.node, file.kind) | {"filename": file.filename}
            try:
                async with server.view(file, context) as chunks:
                    asset = await save(
                        chunks, output=self._label.base + len(saved), name=file.plain_name, metadata=about
                    )
            except NotFound as error:
                await self._gone(server, file.filename, file.node in entry.cached, error)
            saved.append({**about, "asset": asset})
        for node, picture in self._pictures:
            about = self._about(node, "images")
            asset = await save(picture.image, output=self._label.base + len(saved), metadata=about)
            saved.append({**about, "asset": asset})
        return saved

    async def _gone(self, server: Server, filename: str, cached: bool, error: NotFound) -> None:
        """A file that the prompt has named is not there. Raises."""
        if not cached:
            raise NotFound(f"{filename}: ComfyUI has lost the file") from error
        # The node was not run again, and its file of then has been deleted: the next attempt must run it.
        await server.free(unload_models=False, free_memory=True)
        self.spent = True
        raise BadResponse(f"{filename}: deleted since the run that ComfyUI's cache remembers; the cache is now empty")

    def _about(self, node: str, kind: str) -> dict[str, Any]:
        graph = self._request.graph
        name = graph[node]["class_type"] if node in graph else ""
        return {"node": node, "node_type": name, "title": describe(graph, node), "kind": kind}

    def _result(self, entry: Entry, outputs: Outputs, saved: list[dict[str, Any]]) -> dict[str, Any]:
        prompt = self.prompt
        assert prompt is not None
        result: dict[str, Any] = {"prompt_id": prompt.id, "outputs": saved}
        if outputs.texts:
            result["texts"] = [{**self._about(node, "text"), "text": text} for node, text in outputs.texts]
        if outputs.data:
            result["data"] = outputs.data
        if self._request.seeds:
            result["seeds"] = self._request.seeds
        if prompt.node_errors:
            result["node_errors"] = prompt.node_errors
        result |= {"execution_s": entry.execution_s, "cached_nodes": len(entry.cached), "adopted": prompt.adopted}
        return result

    def _emit(self, name: str, **fields: Any) -> None:
        self._log.vram_usage = self._host.vram_used_bytes
        self._host.write(self._context, self._log, f"prompt_{name}", fields)


def _remaining(data: dict[str, Any]) -> int:
    status = data.get("status")
    info = status.get("exec_info") if isinstance(status, dict) else None
    remaining = info.get("queue_remaining") if isinstance(info, dict) else None
    return remaining if isinstance(remaining, int) else 0
