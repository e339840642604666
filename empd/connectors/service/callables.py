"""An operator's `module:name`, loaded and ready to be called: function, generator, async ones, or a class of these.

Used in the worker's process and in the processes of a pool alike.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from empd.connectors.base import Result
from empd.connectors.context import Context, SyncContext
from empd.connectors.failures import ConnectorError, describe


class Partial(msgspec.Struct, frozen=True):
    """Yielded by a generator: a partial result to show."""

    value: Any


class Stopped(Exception):
    """A generator was left because its job is to stop."""


class Loaded(NamedTuple):
    """A callable ready for jobs: `call(payload, context)`; `setup` and `teardown` where it is a class."""

    call: Callable[..., Any]
    is_async: bool
    setup: Callable[..., Any] | None
    teardown: Callable[..., Any] | None


def load(target: str, python_path: Sequence[str]) -> Loaded:
    """Imports `module:name`. Raises ConnectorError (no retry: only a change of files helps) with the reason."""
    for path in reversed(python_path):
        if path not in sys.path:
            sys.path.insert(0, path)
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise ConnectorError(f"callable {target!r} is not module:name", retry=False)
    found = _find(target, module_name, name)
    setup = teardown = None
    if inspect.isclass(found):
        try:
            instance = found()
        except Exception as error:  # the operator's code
            raise ConnectorError(f"callable {target!r}: {describe(error)}", retry=False) from error
        setup, teardown = getattr(instance, "setup", None), getattr(instance, "teardown", None)
        found = getattr(instance, "process", None)
    if not callable(found):
        raise ConnectorError(f"callable {target!r} is no function, nor a class with a process method", retry=False)
    is_async = inspect.iscoroutinefunction(found) or inspect.isasyncgenfunction(found)
    return Loaded(_with_two_arguments(found), is_async, setup, teardown)


def run(loaded: Loaded, payload: Any, context: SyncContext) -> Any:
    """Calls a plain callable; a generator is run to its end."""
    value = loaded.call(payload, context)
    return _drive(value, context) if inspect.isgenerator(value) else value


async def run_async(loaded: Loaded, payload: Any, context: Context) -> Any:
    """Calls an async callable; an async generator is run to its end."""
    value = loaded.call(payload, context)
    return await (_drive_async(value, context) if inspect.isasyncgen(value) else value)


async def prepare(loaded: Loaded, options: Mapping[str, Any], in_thread: Callable[..., Any]) -> None:
    """Runs `setup(**options)`, a plain one by way of `in_thread` (awaited)."""
    await _either(loaded.setup, options, in_thread)


async def dismantle(loaded: Loaded, in_thread: Callable[..., Any]) -> None:
    """Runs `teardown()` likewise."""
    await _either(loaded.teardown, {}, in_thread)


async def _either(
    function: Callable[..., Any] | None, options: Mapping[str, Any], in_thread: Callable[..., Any]
) -> None:
    if function is None:
        return
    if inspect.iscoroutinefunction(function):
        await function(**options)
    else:
        await in_thread(lambda: function(**options))


def _find(target: str, module_name: str, name: str) -> Any:
    importlib.invalidate_caches()
    try:
        known = module_name in sys.modules
        module = importlib.import_module(module_name)
        found = _attribute(module, name)
        if found is None and known:
            # Loaded before the name was written into the file.
            found = _attribute(importlib.reload(module), name)
    except Exception as error:  # the operator's module may raise anything while it is imported
        raise ConnectorError(
            f"callable {target!r}: importing {module_name} failed: {describe(error)}", retry=False
        ) from error
    if found is None:
        raise ConnectorError(f"callable {target!r}: module {module_name} has no {name}", retry=False)
    return found


def _attribute(module: Any, name: str) -> Any:
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _with_two_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(payload, context)`, also for one that takes the payload alone."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return lambda payload, _context: function(payload)
    except ValueError:  # a C function without a signature
        return function
    return function


def _drive(generator: Generator[Any, Any, Any], context: SyncContext) -> Any:
    result: Any = None
    try:
        while True:
            if context.cancelled:
                raise Stopped
            try:
                emitted = next(generator)
            except StopIteration as stop:
                return result if stop.value is None else stop.value
            if not _tell(emitted, context):
                result = emitted
    finally:
        generator.close()


async def _drive_async(generator: AsyncIterator[Any], context: Context) -> Any:
    result: Any = None
    try:
        async for emitted in generator:
            if not _tell(emitted, context):
                result = emitted
    finally:
        await generator.aclose()  # type: ignore[attr-defined]
    return result


def _tell(emitted: Any, context: Context | SyncContext) -> bool:
    """Passes on what a generator yielded; False when it is the result: neither progress nor partial."""
    if isinstance(emitted, Partial):
        context.partial(emitted.value)
    elif isinstance(emitted, (int, float)) and not isinstance(emitted, bool):
        context.progress(float(emitted))
    elif _is_progress(emitted):
        context.progress(float(emitted[0]), emitted[1])
    else:
        return False
    return True


def _is_progress(emitted: Any) -> bool:
    return (
        isinstance(emitted, tuple)
        and not isinstance(emitted, Result)
        and len(emitted) == 2
        and isinstance(emitted[0], (int, float))
        and isinstance(emitted[1], str)
    )
