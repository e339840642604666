"""The seam between what is saved and where: each store is one implementation, tests run on all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

from empd.asset import AssetFailed
from empd.assets.content import Intake
from empd.assets.naming import Mark, Naming, epoch_of
from empd.errors import FailureClass


class Request(NamedTuple):
    """One asset to be saved: by whom, under which names, with which metadata of the connector's own."""

    naming: Naming
    output: int
    hint: str
    metadata: Mapping[str, str]
    number: int


class Stored(NamedTuple):
    """A saved asset."""

    name: str
    media_type: str
    size_bytes: int
    sha256: str
    url: str


class Store(Protocol):
    """A place for assets. Every method raises AssetFailed, and nothing else, for what goes wrong outside."""

    provider: str

    async def open(self) -> None:
        """Makes ready."""

    async def close(self) -> None:
        """Lets go of everything."""

    async def check(self) -> None:
        """Returns when assets could be saved now."""

    async def put(self, intake: Intake, request: Request) -> Stored:
        """Saves all of the content, or nothing that anyone can see.

        What lies under the name from an earlier attempt at the job, or an earlier job, is replaced. A stale attempt
        replaces nothing: AssetFailed with `cancelled`.
        """

    async def sweep(self, naming: Naming, keep: Collection[str]) -> int:
        """Removes what earlier attempts at this job left, and what this one did not name in `keep`; how many."""

    async def discard(self, name: str, mark: Mark) -> bool:
        """Removes an asset, if it still is this attempt's."""


def check_rival(name: str, rival: Mapping[str, str], mark: Mark) -> None:
    """Lets an asset be replaced that is there already, or raises AssetFailed: only an earlier epoch may be, or what
    another box saved under the same file name (epochs of two boxes tell nothing)."""
    epoch = epoch_of(rival)
    if epoch < 0:
        reason = f"{name!r} exists and was not saved by empd; it is left as it is"
        raise AssetFailed(FailureClass.INVALID_INPUT, reason, retry=False)
    if rival.get("empd_instance") == mark.instance and epoch > mark.epoch:
        raise AssetFailed(FailureClass.CANCELLED, f"{name!r} was saved by a later attempt", retry=False)


def is_leftover(name: str, mark: Mark, keep: Collection[str], fields: Mapping[str, str]) -> bool:
    """Whether the winner `mark` removes this asset: its own job's, of no later epoch, and not in its result."""
    return name not in keep and mark.owns(fields) and epoch_of(fields) <= mark.epoch
