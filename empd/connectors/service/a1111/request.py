"""What a job asks for, as the server wants to be asked: `modules/api/models.py`, `processing.py` of its 1.10 line."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple

from empd.connectors.failures import InvalidInput

PICTURES = ("txt2img", "img2img")
LISTS = {
    "options": "options",
    "models": "sd-models",
    "samplers": "samplers",
    "schedulers": "schedulers",
    "upscalers": "upscalers",
    "latent_upscale_modes": "latent-upscale-modes",
    "vaes": "sd-vae",
    "loras": "loras",
    "embeddings": "embeddings",
    "scripts": "scripts",
    "script_info": "script-info",
    "extensions": "extensions",
    "flags": "cmd-flags",
    "memory": "memory",
}
"""Questions: the operation's name → the route."""

COMMANDS = {
    "refresh_checkpoints": "refresh-checkpoints",
    "refresh_vaes": "refresh-vae",
    "refresh_embeddings": "refresh-embeddings",
    "unload_checkpoint": "unload-checkpoint",
    "reload_checkpoint": "reload-checkpoint",
}
OPERATIONS = (*PICTURES, "extras", "interrogate", "png_info", "set_options", *LISTS, *COMMANDS)

DEFAULTS: dict[str, Any] = {"width": 512, "height": 512, "steps": 20, "cfg_scale": 7, "sampler_name": "Euler a"}
_OURS = frozenset({"operation", "model", "vae", "loras", "controlnet", "save_assets", "ctx", "grid", "image"})
_PICTURE_FIELDS = ("mask", "latent_mask", "firstpass_image")
_UNIT_PICTURES = ("image", "input_image", "mask", "mask_image", "effective_region_mask")


class Request(NamedTuple):
    """One call: `route` below `/sdapi/v1/`; `body` None: a GET. `makes_pictures`: it has a task, progress, pictures.
    `complete`: there is a picture for each seed; scripts make as many as they like."""

    operation: str
    route: str
    body: Any = None
    makes_pictures: bool = False
    grid: bool = False
    model: str = ""
    loras: list[str] = []
    complete: bool = False


def read_request(payload: Any, operation: str = "", defaults: Mapping[str, Any] | None = None) -> Request:
    """The call that a payload asks for. Raises InvalidInput with the key that is wrong."""
    if not isinstance(payload, dict):
        raise InvalidInput("the payload is not an object")
    found = payload.get("operation") or operation or ("img2img" if "init_images" in payload else "txt2img")
    if found in PICTURES:
        return _pictures(found, payload, {**DEFAULTS, **(defaults or {})})
    if found == "extras":
        return _extras(payload)
    if found in ("interrogate", "png_info"):
        body: dict[str, Any] = {"image": picture(payload.get("image"), "image")}
        if found == "interrogate":
            body["model"] = payload.get("model", "clip")
        return Request(found, found.replace("_", "-"), body)
    if found == "set_options":
        if not isinstance(payload.get("options"), dict) or not payload["options"]:
            raise InvalidInput("options: missing or not an object")
        return Request(found, "options", payload["options"])
    if found in LISTS:
        return Request(found, LISTS[found])
    if found in COMMANDS:
        return Request(found, COMMANDS[found], {})
    raise InvalidInput(f"operation: {found!r} is not known; accepted: {', '.join(OPERATIONS)}")


def picture(value: Any, key: str) -> str:
    """A picture as the server takes it: base64, with or without a data URL's head, or a URL. Raises InvalidInput."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"{key}: not a picture; accepted: bytes, base64, a data URL")
    return value


def _pictures(operation: str, payload: dict[str, Any], defaults: dict[str, Any]) -> Request:
    body = {**defaults, **{key: value for key, value in payload.items() if key not in _OURS}}
    # The server's own name for it, which it looks at when there is no other.
    body["sampler_name"] = payload.get("sampler_name") or body.pop("sampler_index", None) or body["sampler_name"]
    for key in ("width", "height", "steps", "batch_size", "n_iter"):
        if key in body and (not isinstance(body[key], int) or isinstance(body[key], bool) or body[key] < 1):
            raise InvalidInput(f"{key}: {body[key]!r} is not a whole number from 1")
    if operation == "img2img":
        given = payload.get("init_images", [payload["image"]] if "image" in payload else None)
        if not isinstance(given, list) or not given:
            raise InvalidInput("init_images: missing; accepted: a list of pictures")
        body["init_images"] = [picture(each, f"init_images[{i}]") for i, each in enumerate(given)]
    for key in _PICTURE_FIELDS:
        if body.get(key) is not None:
            body[key] = picture(body[key], key)
    body["prompt"] = _with_loras(body.get("prompt", ""), payload.get("loras"))
    if units := payload.get("controlnet"):
        scripts = dict(body.get("alwayson_scripts") or {})
        scripts["ControlNet"] = {"args": _units(units)}
        body["alwayson_scripts"] = scripts
    # What the job does not get back it must not leave on the server's disk either; but a grid is made of what is saved.
    grid = bool(payload.get("grid"))
    body |= {"send_images": True, "save_images": bool(payload.get("save_images", grid))}
    override = dict(body.get("override_settings") or {})
    if vae := payload.get("vae"):
        override["sd_vae"] = vae
    body["override_settings"] = override
    return Request(
        operation,
        operation,
        body,
        makes_pictures=True,
        grid=grid,
        model=str(payload.get("model") or ""),
        loras=list(payload.get("loras") or ()),
        complete=not body.get("script_name"),
    )


def _extras(payload: dict[str, Any]) -> Request:
    body = {key: value for key, value in payload.items() if key not in _OURS and key != "images"}
    if "images" not in payload:
        return Request("extras", "extra-single-image", {**body, "image": picture(payload.get("image"), "image")}, True)
    given = payload["images"]
    if not isinstance(given, list) or not given:
        raise InvalidInput("images: not a list of pictures")
    listed = [{"data": picture(each, f"images[{i}]"), "name": f"{i}.png"} for i, each in enumerate(given)]
    return Request("extras", "extra-batch-images", {**body, "imageList": listed}, True)


def _with_loras(prompt: Any, loras: Any) -> str:
    if not isinstance(prompt, str):
        raise InvalidInput("prompt: not a text")
    if not loras:
        return prompt
    named = loras.items() if isinstance(loras, dict) else [(each, 1) for each in loras]
    tags = [f"<lora:{name}:{weight:g}>" for name, weight in named if isinstance(weight, (int, float))]
    if len(tags) != len(named) or not all(isinstance(name, str) for name, _ in named):
        raise InvalidInput("loras: accepted: a list of names, or an object of names and weights")
    return " ".join((prompt, *tags)) if prompt else " ".join(tags)


def _units(units: Any) -> list[dict[str, Any]]:
    if not isinstance(units, list) or not all(isinstance(unit, dict) for unit in units):
        raise InvalidInput("controlnet: accepted: a list of units")
    return [
        {
            key: picture(value, f"controlnet[{i}].{key}") if key in _UNIT_PICTURES and value is not None else value
            for key, value in unit.items()
        }
        for i, unit in enumerate(units)
    ]
