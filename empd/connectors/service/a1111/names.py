"""What a job names, as the server knows it.

A sampler, scheduler, model, VAE or LoRA that the server does not know it replaces or leaves out, without a word, and
makes another picture than was asked for. So names are looked up before the call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from empd.connectors.failures import NotFound

Listed = Callable[[str], Awaitable[list[dict[str, Any]] | None]]
"""The server's list at a route; None: it has no such route, and its names cannot be looked up."""

VAES = ("Automatic", "None")
SHOWN_MAX = 40


class Names:
    """The server's names for what jobs name. What is part of its program is asked for once, or when a name is missing;
    files come and go."""

    def __init__(self, listed: Listed) -> None:
        self._listed = listed
        self._known: dict[str, dict[str, str] | None] = {}

    async def settle(self, body: dict[str, Any], model: str, loras: list[str]) -> None:
        """Puts the server's own names in place of the job's. Raises NotFound before the server is stopped by it."""
        for key in ("sampler_name", "hr_sampler_name"):
            if body.get(key):
                body[key] = await self._sampler(str(body[key]))
        for key in ("scheduler", "hr_scheduler"):
            if body.get(key):
                body[key] = await self._find("scheduler", str(body[key]))
        override = body["override_settings"]
        if model := model or str(override.get("sd_model_checkpoint") or ""):
            override["sd_model_checkpoint"] = await self._find("model", model)
        if (vae := override.get("sd_vae")) and vae not in VAES:
            override["sd_vae"] = await self._find("VAE", str(vae))
        for lora in loras:
            await self._find("LoRA", lora)

    async def _sampler(self, name: str) -> str:
        """With a scheduler's name behind it, or without."""
        samplers, schedulers = await self._names("sampler"), await self._names("scheduler")
        lower = name.lower()
        for scheduler, label in (schedulers or {}).items():
            stem = lower.removesuffix(f" {scheduler}")
            if samplers and lower not in samplers and stem != lower and stem in samplers:
                return f"{samplers[stem]} {label}"
        return await self._find("sampler", name)

    async def _find(self, kind: str, name: str) -> str:
        there: dict[str, str] = {}
        for fresh in (False, True) if kind in _BUILT_IN else (True,):
            known = await self._names(kind, fresh)
            if known is None:
                return name
            if found := known.get(name.lower()):
                return found
            there = dict.fromkeys(known.values(), "")
        shown, more = ", ".join(list(there)[:SHOWN_MAX]) or "none", len(there) - SHOWN_MAX
        raise NotFound(
            f"the server has no {kind} {name!r}; it has: {shown}" + (f" and {more} more" if more > 0 else "")
        )

    async def _names(self, kind: str, fresh: bool = False) -> dict[str, str] | None:
        """Each name in lower case, with the one that the server wants."""
        if fresh or kind not in self._known:
            route, wanted, others = _LISTS[kind]
            listed = await self._listed(route)
            self._known[kind] = (
                None
                if listed is None
                else {
                    name.lower(): str(entry[wanted])
                    for entry in listed
                    for key in (*others, wanted)
                    for name in _texts(entry.get(key))
                }
            )
        return self._known[kind]


def _texts(value: Any) -> list[str]:
    return [str(each) for each in (value if isinstance(value, list) else [value]) if each]


_BUILT_IN = ("sampler", "scheduler")
_LISTS = {
    "sampler": ("samplers", "name", ("aliases",)),
    "scheduler": ("schedulers", "label", ("aliases", "name")),
    "model": ("sd-models", "title", ("sha256", "hash", "model_name")),
    "VAE": ("sd-vae", "model_name", ()),
    "LoRA": ("loras", "name", ("alias",)),
}
"""Kind → route, the key with the name that the server wants, the keys with others."""
