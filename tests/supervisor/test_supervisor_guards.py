"""Guards of the supervisor that a test with real processes can hardly bring into play."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from empd.supervisor.warden import Warden


class Tree:
    """A tree of processes in which something still runs."""

    def __init__(self) -> None:
        self.killed: list[tuple[str, int]] = []

    def is_empty(self, name: str, session: int) -> bool:
        return False

    def out_of_memory(self, name: str) -> bool:
        raise AssertionError("the death is being told")

    def kill(self, name: str, session: int) -> None:
        self.killed.append((name, session))


def test_a_death_is_not_told_while_anything_of_the_tree_can_run() -> None:
    trees = Tree()
    warden: Any = SimpleNamespace(trees=trees)
    member: Any = SimpleNamespace(
        spec=SimpleNamespace(name="w-0"), pid=7, died=9, died_ns=time.monotonic_ns(), life=None, condemned=None
    )
    Warden._bury(warden, member)
    assert trees.killed == [("w-0", 7)]
    assert member.died == 9
