"""What the server answers with pictures: which of them are the job's, and what it says of them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from empd.connectors.failures import BadResponse, ConnectorError
from empd.connectors.service.a1111.request import Request
from empd.connectors.service.a1111.task import INTERRUPTED


class Picture(NamedTuple):
    """One picture, base64. `kind`: `image`, `grid` (all of a batch in one), `extra` (ControlNet's maps and such)."""

    kind: str
    data: str
    seed: int | None = None
    infotext: str = ""


class Output(NamedTuple):
    """The pictures in their order, and the server's own account of the run."""

    pictures: list[Picture]
    info: dict[str, Any]


def read_output(body: Any, request: Request) -> Output:
    """Sorts an answer. Raises BadResponse for one without pictures."""
    if not isinstance(body, dict):
        raise BadResponse("the answer is not an object")
    if request.operation == "extras":
        found = body.get("images") if "images" in body else [body.get("image")]
        if not isinstance(found, list) or not found or not all(isinstance(each, str) and each for each in found):
            raise BadResponse("the answer has no pictures")
        return Output([Picture("image", each) for each in found], {})
    found = body.get("images")
    info = _info(body.get("info"))
    first, seeds = int(info.get("index_of_first_image") or 0), info.get("all_seeds") or []
    if isinstance(found, list) and request.complete and len(found) - first < len(seeds):
        raise ConnectorError(f"{INTERRUPTED}: {len(found) - first} of {len(seeds)} pictures")
    if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
        raise BadResponse("the answer has no pictures")
    texts = info.get("infotexts") or []
    count = len(seeds) or len(found) - first
    pictures = [Picture("grid", each) for each in found[:first] if request.grid]
    for i, each in enumerate(found[first:]):
        seed = int(seeds[i]) if i < len(seeds) else None
        text = str(texts[first + i]) if first + i < len(texts) else ""
        pictures.append(Picture("image" if i < count else "extra", each, seed, text))
    return Output(pictures, info)


def _info(text: Any) -> dict[str, Any]:
    """`info` is JSON within JSON."""
    try:
        found = json.loads(text) if isinstance(text, str) and text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
