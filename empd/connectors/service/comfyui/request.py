"""What a job asks for: the workflow and what belongs to it, read from the payload."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Literal

import msgspec

from empd.connectors.failures import InvalidInput
from empd.connectors.service.comfyui.outputs import select_nodes
from empd.connectors.service.comfyui.templates import fill, load_template, set_seeds, template_of
from empd.connectors.service.comfyui.workflow import Graph, read_graph

Temporary = Literal["if_alone", "always", "never"]


class Request(msgspec.Struct, kw_only=True):
    """One run. `nodes`: whose outputs are wanted (None: all); `files`: name in the workflow → content."""

    graph: Graph
    files: dict[str, bytes] = {}
    nodes: list[str] | None = None
    seeds: dict[str, int] = {}
    extra_data: dict[str, Any] = {}
    allow_partial: bool = False
    temporary_files: Temporary = "if_alone"


class _Payload(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The keys of a payload. `prompt` is ComfyUI's own name for the workflow."""

    workflow: Any = None
    prompt: Any = None
    files: dict[str, Any] = {}
    outputs: list[str] | None = None
    extra_data: dict[str, Any] = {}
    allow_partial: bool = False
    temporary_files: Temporary = "if_alone"
    # Where the outputs are saved, which is said to `context.assets`.
    save_assets: bool = True
    ctx: Any = None


class _Advanced(_Payload, kw_only=True, forbid_unknown_fields=True):
    """What `ComfyUIAdvancedConnector` takes besides."""

    template: str = ""
    parameters: dict[str, Any] = {}
    seed: Any = None


class Batch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What `ComfyUIBatchConnector` takes: one workflow, and for each item what is special about it.

    `shared` is merged under each item. `item_retries`: how often an item is tried again in this attempt at the job;
    `on_failure`: what follows when an item has failed for good.
    """

    items: list[dict[str, Any]]
    workflow: Any = None
    template: str = ""
    shared: dict[str, Any] = {}
    item_retries: int = 1
    on_failure: Literal["continue", "fail"] = "continue"
    save_assets: bool = True
    ctx: Any = None


ITEMS_MAX = 10_000


def read_request(payload: Any) -> Request:
    """A plain request: the workflow itself, or an object with it. Raises InvalidInput."""
    payload = _object(payload)
    bare = "workflow" not in payload and "prompt" not in payload
    body = _convert({"workflow": payload} if bare or _is_graph(payload) else payload, _Payload)
    return _request(body, read_graph(body.workflow if body.workflow is not None else body.prompt))


def read_advanced(payload: Any, templates_dir: str, job_id: int, salt: str = "") -> Request:
    """A request by template and parameters. Raises InvalidInput."""
    body = _convert(_object(payload), _Advanced)
    workflow = body.workflow if body.workflow is not None else body.prompt
    if body.template and workflow is not None:
        raise InvalidInput("give either template or workflow")
    if not body.template and workflow is None:
        raise InvalidInput("template or workflow is missing")
    template = load_template(templates_dir, body.template) if body.template else template_of(workflow)
    graph = fill(template, body.parameters, f"template {body.template!r}" if body.template else "workflow")
    request = _request(body, graph)
    if body.seed is not None:
        request.seeds = set_seeds(graph, body.seed, job_id, salt)
    return request


def read_batch(payload: Any, templates_dir: str, job_id: int) -> tuple[Batch, list[Request]]:
    """A batch and the request of each item. Raises InvalidInput that names the item."""
    batch = _convert(_object(payload), Batch)
    if not 0 < len(batch.items) <= ITEMS_MAX:
        raise InvalidInput(f"items: expected 1 to {ITEMS_MAX}")
    requests = []
    for index, item in enumerate(batch.items):
        merged = {**batch.shared, **item}
        shared, own = batch.shared.get("parameters"), item.get("parameters")
        if isinstance(shared, dict) and isinstance(own, dict):
            merged["parameters"] = {**shared, **own}
        if batch.template:
            merged["template"] = batch.template
        elif batch.workflow is not None:
            merged["workflow"] = batch.workflow
        try:
            requests.append(read_advanced(merged, templates_dir, job_id, str(index)))
        except InvalidInput as error:
            raise InvalidInput(f"items[{index}]: {error.message}") from None
    return batch, requests


def _request(body: _Payload, graph: Graph) -> Request:
    return Request(
        graph=graph,
        files={name: _content(name, value) for name, value in body.files.items()},
        nodes=None if body.outputs is None else select_nodes(graph, body.outputs),
        extra_data=body.extra_data,
        allow_partial=body.allow_partial,
        temporary_files=body.temporary_files,
    )


def _object(payload: Any) -> dict[str, Any]:
    """The payload; a file that was submitted as it is comes as bytes."""
    if isinstance(payload, bytes):
        try:
            payload = msgspec.json.decode(payload)
        except msgspec.DecodeError as error:
            raise InvalidInput(f"the payload is not JSON: {error}") from None
    if not isinstance(payload, dict):
        raise InvalidInput('the payload must be a workflow in the API format, or {"workflow": …}')
    return payload


def _convert(payload: Any, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(payload, kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the payload does not fit: {error}") from None


def _is_graph(payload: dict[str, Any]) -> bool:
    """A bare workflow, whose node may well be called `prompt`."""
    return all(isinstance(body, dict) and "class_type" in body for body in payload.values())


def _content(name: str, value: Any) -> bytes:
    """A file in a payload: bytes, base64, or a data URL."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise InvalidInput(f"files.{name}: expected bytes, base64 or a data URL")
    text = value.partition(";base64,")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise InvalidInput(f"files.{name}: not base64") from None
