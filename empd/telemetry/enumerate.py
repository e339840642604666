"""The list of GPUs, asked for by the supervisor in a child that it may kill."""

from __future__ import annotations

from typing import Any

import msgspec

from empd.telemetry.nvml import Nvml


def enumerate_devices() -> list[dict[str, Any]]:
    """Every GPU that NVML names, as the fields of a `Device`.

    Raises NoNvml with the reason where NVML is missing or does not work.
    """
    nvml = Nvml()
    try:
        return [msgspec.structs.asdict(device) for device in nvml.devices()]
    finally:
        nvml.close()
