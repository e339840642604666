"""The node classes of the ComfyUI double, and how it judges a graph before it runs.

Texts and shapes follow `execution.py` of ComfyUI 0.3.64 (`validate_prompt`, `validate_inputs`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Graph = dict[str, dict[str, Any]]
Spec = tuple[Any, dict[str, Any]]
LIST_SHOWN_MAX = 20


class NodeClass(NamedTuple):
    """What `/object_info` says of a class."""

    required: dict[str, Spec]
    output: tuple[str, ...]
    output_node: bool = False
    optional: dict[str, Spec] = {}


def _int(default: int = 0, least: int = 0, most: int = 16384) -> Spec:
    return "INT", {"default": default, "min": least, "max": most}


def _float(default: float, most: float = 3600.0) -> Spec:
    return "FLOAT", {"default": default, "min": 0.0, "max": most}


def _text(default: str = "") -> Spec:
    return "STRING", {"default": default}


IMAGE: Spec = ("IMAGE", {})
ANY: Spec = ("*", {})
CHECKPOINTS = ["dream_v8.safetensors", "sdxl_base_1.0.safetensors"]

CLASSES: dict[str, NodeClass] = {
    # stock nodes
    "EmptyImage": NodeClass(
        {"width": _int(512, 1), "height": _int(512, 1), "batch_size": _int(1, 1, 4096), "color": _int(0, 0, 0xFFFFFF)},
        ("IMAGE",),
    ),
    "ImageInvert": NodeClass({"image": IMAGE}, ("IMAGE",)),
    "ImageBlur": NodeClass(
        {
            "image": IMAGE,
            "blur_radius": _int(1, 1, 31),
            "sigma": ("FLOAT", {"default": 1.0, "min": 0.1, "max": 10.0}),
        },
        ("IMAGE",),
    ),
    "LoadImage": NodeClass({"image": ([], {"image_upload": True})}, ("IMAGE", "MASK")),
    "SaveImage": NodeClass({"images": IMAGE, "filename_prefix": _text("ComfyUI")}, (), True),
    "PreviewImage": NodeClass({"images": IMAGE}, (), True),
    "SaveImageWebsocket": NodeClass({"images": IMAGE}, (), True),
    "SaveAnimatedWEBP": NodeClass(
        {
            "images": IMAGE,
            "filename_prefix": _text("ComfyUI"),
            "fps": _float(6.0, 1000.0),
            "lossless": ("BOOLEAN", {"default": True}),
            "quality": _int(80, 0, 100),
            "method": (["default", "fastest", "slowest"], {}),
        },
        (),
        True,
    ),
    "CheckpointLoaderSimple": NodeClass({"ckpt_name": (CHECKPOINTS, {})}, ("MODEL", "CLIP", "VAE")),
    "PreviewAny": NodeClass({"source": ANY}, (), True),
    # what custom nodes of the wild leave behind
    "VHS_VideoCombine": NodeClass({"images": IMAGE, "filename_prefix": _text("AnimateDiff")}, (), True),
    "SaveVideo": NodeClass({"images": IMAGE, "filename_prefix": _text("video/ComfyUI")}, (), True),
    "SaveAudio": NodeClass({"seconds": _float(0.1), "filename_prefix": _text("audio/ComfyUI")}, (), True),
    # for tests only
    "Sleep": NodeClass(
        {"image": IMAGE, "seconds": _float(0.2), "steps": _int(4, 1, 1000)},
        ("IMAGE",),
        optional={"previews": ("BOOLEAN", {"default": False}), "seed": _int(0, 0, 1 << 53)},
    ),
    "RaiseError": NodeClass(
        {"image": IMAGE, "exception_type": _text("RuntimeError"), "message": _text("something went wrong")}, ("IMAGE",)
    ),
    "BlockExecution": NodeClass({"image": IMAGE, "message": _text("not today")}, ("IMAGE",)),
    "MakeGrid": NodeClass({"image": IMAGE}, ("IMAGE",)),
}


def object_info(name: str) -> dict[str, Any]:
    """One entry of `/object_info`."""
    node = CLASSES[name]
    optional = {"optional": dict(node.optional)} if node.optional else {}
    return {
        "input": {"required": dict(node.required), **optional},
        "input_order": {"required": list(node.required), **({"optional": list(node.optional)} if optional else {})},
        "output": node.output,
        "output_is_list": [False] * len(node.output),
        "output_name": node.output,
        "name": name,
        "display_name": name,
        "description": "",
        "python_module": "nodes",
        "category": "sd",
        "output_node": node.output_node,
    }


def is_link(value: Any) -> bool:
    """Whether an input is the output of another node."""
    return isinstance(value, list) and len(value) == 2


class Verdict(NamedTuple):
    """`error` None: accepted, and `outputs` are to be run; `node_errors` may hold those that are not."""

    error: dict[str, Any] | None
    outputs: list[str]
    node_errors: dict[str, Any]


def judge(graph: Graph, targets: list[str] | None, file_exists: Callable[[str], bool]) -> Verdict:
    """As `validate_prompt`. Raises KeyError or TypeError where ComfyUI would answer 500."""
    outputs = []
    for node_id, node in graph.items():
        if "class_type" not in node:
            text = "Cannot execute because a node is missing the class_type property."
            return _refused("invalid_prompt", text, f"Node ID '#{node_id}'")
        name = node["class_type"]
        if name not in CLASSES:
            text = f"Cannot execute because node {name} does not exist."
            return _refused("invalid_prompt", text, f"Node ID '#{node_id}'")
        if CLASSES[name].output_node and (targets is None or node_id in targets):
            outputs.append(node_id)
    if not outputs:
        return _refused("prompt_no_outputs", "Prompt has no outputs", "")
    return _judge_outputs(graph, outputs, file_exists)


def _refused(kind: str, message: str, details: str, node_errors: dict[str, Any] | None = None) -> Verdict:
    error = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return Verdict(error, [], node_errors or {})


def _judge_outputs(graph: Graph, outputs: list[str], file_exists: Callable[[str], bool]) -> Verdict:
    judged: dict[str, tuple[bool, list[Any]]] = {}
    node_errors: dict[str, Any] = {}
    good, lines = [], []
    for output in outputs:
        try:
            valid, reasons = _judge_node(graph, output, judged, file_exists)
        except RecursionError:
            # ComfyUI's record of the nodes on the way is lost with the stack: a cycle names no node and no reason.
            valid, reasons, judged = False, [], {}
        except (KeyError, IndexError) as error:
            extra = {"exception_type": type(error).__name__, "traceback": []}
            reasons = [_problem("exception_during_validation", "Exception when validating node", str(error), extra)]
            valid, judged[output] = False, (False, reasons)
        if valid:
            good.append(output)
            continue
        lines += [f"{reason['message']}: {reason['details']}" for reason in reasons]
        for node_id, (fine, problems) in judged.items():
            if not fine and problems:
                entry = {"errors": problems, "dependent_outputs": [], "class_type": graph[node_id]["class_type"]}
                node_errors.setdefault(node_id, entry)["dependent_outputs"].append(output)
    if good:
        return Verdict(None, good, node_errors)
    text = "Prompt outputs failed validation"
    return _refused("prompt_outputs_failed_validation", text, "\n".join(lines), node_errors)


def _problem(kind: str, message: str, details: str, extra: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def _judge_node(
    graph: Graph, node_id: str, judged: dict[str, tuple[bool, list[Any]]], file_exists: Callable[[str], bool]
) -> tuple[bool, list[Any]]:
    if node_id in judged:
        return judged[node_id]
    node = graph[node_id]
    wanted = CLASSES[node["class_type"]]
    problems: list[Any] = []
    fine = True
    for name, spec in {**wanted.required, **wanted.optional}.items():
        if name not in node["inputs"]:
            if name in wanted.required:
                extra = {"input_name": name}
                problems.append(_problem("required_input_missing", "Required input is missing", name, extra))
            continue
        value = node["inputs"][name]
        if isinstance(value, list):
            problem, inner_fine = _judge_link(graph, name, spec, value, (judged, file_exists))
            fine = fine and inner_fine
        else:
            problem = _judge_value(node, name, spec, value, file_exists)
        if problem:
            problems.append(problem)
    judged[node_id] = (fine and not problems, problems)
    return judged[node_id]


def _judge_link(
    graph: Graph,
    name: str,
    spec: Spec,
    link: list[Any],
    walk: tuple[dict[str, tuple[bool, list[Any]]], Callable[[str], bool]],
) -> tuple[dict[str, Any] | None, bool]:
    extra = {"input_name": name, "input_config": spec, "received_value": link}
    if len(link) != 2:
        text = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
        return _problem("bad_linked_input", text, name, extra), True
    judged, file_exists = walk
    source, slot = link
    given = CLASSES[graph[source]["class_type"]].output[slot]
    if spec[0] not in ("*", given):
        details = f"{name}, received_type({given}) mismatch input_type({spec[0]})"
        extra = {"input_name": name, "input_config": spec, "received_type": given, "linked_node": link}
        return _problem("return_type_mismatch", "Return type mismatch between linked nodes", details, extra), True
    try:
        inner_fine, _ = _judge_node(graph, source, judged, file_exists)
    except KeyError as error:  # a link that leads nowhere
        extra = {"input_name": name, "exception_message": str(error), "exception_type": "KeyError", "linked_node": link}
        text = "Exception when validating inner node"
        judged[source] = (False, [_problem("exception_during_inner_validation", text, str(error), extra)])
        inner_fine = False
    return None, inner_fine


def _judge_value(
    node: dict[str, Any], name: str, spec: Spec, value: Any, file_exists: Callable[[str], bool]
) -> dict[str, Any] | None:
    kind, rules = spec
    extra = {"input_name": name, "input_config": spec, "received_value": value}
    convert = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}.get(kind if isinstance(kind, str) else "")
    if convert is not None:
        try:
            value = node["inputs"][name] = convert(value)
        except (ValueError, TypeError) as error:
            text = f"Failed to convert an input value to a {kind} value"
            extra["exception_message"] = str(error)
            return _problem("invalid_input_type", text, f"{name}, {value}, {error}", extra)
    if node["class_type"] == "LoadImage":
        if not file_exists(value):
            details = f"{name} - Invalid image file: {value}"
            text = "Custom validation failed for node"
            return _problem("custom_validation_failed", text, details, {"input_name": name})
        return None
    if "min" in rules and value < rules["min"]:
        text = f"Value {value} smaller than min of {rules['min']}"
        return _problem("value_smaller_than_min", text, name, extra)
    if "max" in rules and value > rules["max"]:
        text = f"Value {value} bigger than max of {rules['max']}"
        return _problem("value_bigger_than_max", text, name, extra)
    if isinstance(kind, list) and value not in kind:
        many = len(kind) > LIST_SHOWN_MAX
        shown = f"(list of length {len(kind)})" if many else str(kind)
        extra["input_config"] = None if many else spec
        return _problem("value_not_in_list", "Value not in list", f"{name}: '{value}' not in {shown}", extra)
    return None
