"""What is logged of a picture."""

from __future__ import annotations

from typing import Any, ClassVar

from empd.connectors.logger import ServiceLog


class A1111Log(ServiceLog):
    """One record for each answer with pictures, from what the server says that it did."""

    schema: ClassVar[str] = "a1111"
    sampler: str = ""
    steps: int = 0
    cfg_scale: float = 0.0
    seed: int = -1
    model_checkpoint: str = ""
    width: int = 0
    height: int = 0
    batch_size: int = 0
    vae: str = ""


def log_of(info: dict[str, Any]) -> A1111Log:
    """The record of an answer's `info`."""
    return A1111Log(
        sampler=str(info.get("sampler_name") or ""),
        steps=int(info.get("steps") or 0),
        cfg_scale=float(info.get("cfg_scale") or 0.0),
        seed=int(info.get("seed", -1)),
        model_checkpoint=str(info.get("sd_model_name") or info.get("sd_model_hash") or ""),
        width=int(info.get("width") or 0),
        height=int(info.get("height") or 0),
        batch_size=int(info.get("batch_size") or 0),
        vae=str(info.get("sd_vae_name") or info.get("sd_vae_hash") or ""),
    )
