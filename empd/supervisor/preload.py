"""Modules that children need are loaded once, before the first child that needs them is forked, by name.

Never an operator's module, torch, numpy or grpc: they start threads, open devices or keep locks, and a fork
would copy those half-alive.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterable


def preload(modules: Iterable[str]) -> list[str]:
    """Imports `modules`; returns those that could not be imported, or that started a thread, with the reason.

    A child that needs a missing one says so itself when it is entered. Afterwards the garbage collector leaves all
    that is loaded alone, so that the pages stay shared. It has not looked for the little garbage of the imports: that
    takes longer than a fork.
    """
    wrong = []
    threads = _threads()
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # the supervisor goes on; the child that needs the module will say so
            wrong.append(f"{name}: {type(error).__name__}: {error}")
        if (now := _threads()) > threads:
            # A fork would leave what that thread holds locked for ever.
            wrong.append(f"{name}: starts a thread when it is imported; take it out of `preload`")
            threads = now
    gc.freeze()
    return wrong


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))
