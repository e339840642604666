"""A GPU (or the lack of one) as every room sees it."""

from __future__ import annotations

import msgspec


class Device(msgspec.Struct, frozen=True):
    """One device that a worker is pinned to.

    `uuid` is what CUDA_VISIBLE_DEVICES gets. A virtual device stands in for a GPU on a box without one and
    is called virtual wherever it is shown.
    """

    index: int
    uuid: str
    name: str
    memory_total_bytes: int
    virtual: bool = False


def virtual_devices(count: int) -> list[Device]:
    """`count` stand-ins of 24 GiB each."""
    return [Device(i, f"VIRTUAL-{i}", "virtual GPU", 24 << 30, virtual=True) for i in range(count)]
