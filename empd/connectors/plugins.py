"""What an operator hangs on connectors: code before and after each job, and beside each health check.

The mapping names them, for all services (`plugins` at its top) or for one (`services.<name>.plugins`): `module:Class`,
or a name of the entry point group `empd.plugins`. They are called in the order declared, those for all first. A plugin
that fails is passed over, shown on the status page with what it raised, and after `FAILURES_MAX` failures in a row not
called again until its service is built anew. A service without plugins pays nothing.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from empd.connectors.context import Context, JobView
from empd.connectors.failures import ConnectorError, describe

ENTRY_POINT_GROUP = "empd.plugins"
FAILURES_MAX = 5
HOOKS = ("initialize", "before_job_process", "after_job_process", "on_health_check")


class Plugin:
    """Base of plugins: override what is wanted. Hooks may be plain functions too; each has `timeout_s`."""

    name: ClassVar[str] = ""
    version: ClassVar[str] = "1"
    timeout_s: ClassVar[float] = 5.0

    async def initialize(self, connector: Any) -> None:
        """Once, after the connector was made and before it is opened."""

    async def before_job_process(self, job: JobView, context: Context) -> JobView | None:
        """Gives the job to process, or None for the one it got (`job.with_payload(value)` is the same job with another
        payload). A `ConnectorError` raised here ends the attempt with that verdict; any other error is the plugin's."""

    async def after_job_process(self, job: JobView, result: Any, context: Context) -> Any:
        """Gives the value to use as the result, or None for the one it got."""

    async def on_health_check(self, healthy: bool) -> bool | None:
        """Gives what the health is, or None for what it got."""


class Hung:
    """One plugin as it hangs on one service. `error` is its last failure; `off` that it is not called any more."""

    def __init__(self, name: str, plugin: Any = None, error: str = "") -> None:
        self.name = str(getattr(plugin, "name", "") or name)
        self.version = str(getattr(plugin, "version", ""))
        self.error = error
        self.failures = int(bool(error))
        self.off = plugin is None
        self._in_a_row = 0
        self._timeout_s = float(getattr(plugin, "timeout_s", Plugin.timeout_s))
        self.hooks: dict[str, Callable[..., Any]] = {
            hook: getattr(plugin, hook)
            for hook in HOOKS
            if callable(getattr(plugin, hook, None)) and getattr(type(plugin), hook) is not getattr(Plugin, hook)
        }

    async def call(self, hook: str, *arguments: Any) -> Any:
        """What the hook gives; None when it fails. Raises nothing but a ConnectorError of `before_job_process`."""
        try:
            value = self.hooks[hook](*arguments)
            if inspect.isawaitable(value):
                async with asyncio.timeout(self._timeout_s):
                    value = await value
        except Exception as error:  # the operator's code: its failure must not be the job's
            if isinstance(error, ConnectorError) and hook == "before_job_process":
                raise
            text = f"no answer in {self._timeout_s:g} s" if isinstance(error, TimeoutError) else describe(error)
            self.error = f"{hook}: {text}"
            self.failures += 1
            self._in_a_row += 1
            self.off = self.off or self._in_a_row >= FAILURES_MAX
            return None
        self._in_a_row = 0
        return value

    def shown(self) -> dict[str, Any]:
        """For the status page."""
        body = {"name": self.name, "version": self.version, "hooks": list(self.hooks), "failures": self.failures}
        return {**body, "off": self.off, "error": self.error}


class Plugins:
    """The plugins of one service. `on_failure(plugin)` is called after each failure."""

    def __init__(self, hung: Sequence[Hung], on_failure: Callable[[Hung], None]) -> None:
        self.hung = tuple(hung)
        self._on_failure = on_failure

    async def initialize(self, connector: Any) -> None:
        """Lets all know their connector; one that fails here is not called again."""
        for plugin in self.hung:
            failures = plugin.failures
            await self._call(plugin, "initialize", connector)
            plugin.off = plugin.off or plugin.failures > failures

    async def before(self, job: JobView, context: Context) -> JobView:
        """The job to process."""
        for plugin in self.hung:
            changed = await self._call(plugin, "before_job_process", job, context)
            if isinstance(changed, JobView):
                job = context.job = changed
        return job

    async def after(self, job: JobView, result: Any, context: Context) -> Any:
        """The value to use."""
        for plugin in self.hung:
            changed = await self._call(plugin, "after_job_process", job, result, context)
            result = result if changed is None else changed
        return result

    async def health(self, healthy: bool) -> bool:
        """Whether jobs can be taken."""
        for plugin in self.hung:
            changed = await self._call(plugin, "on_health_check", healthy)
            healthy = healthy if changed is None else bool(changed)
        return healthy

    async def _call(self, plugin: Hung, hook: str, *arguments: Any) -> Any:
        if plugin.off or hook not in plugin.hooks:
            return None
        failures = plugin.failures
        value = await plugin.call(hook, *arguments)
        if plugin.failures > failures:
            self._on_failure(plugin)
        return value


def load(name: str, options: Mapping[str, Any]) -> Hung:
    """A plugin by entry point name or `module:Class`, made with `options`. What goes wrong is in its `error`."""
    points = {point.name: point.value for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}
    target = name if ":" in name else points.get(name, "")
    if not target:
        return Hung(
            name, error=f"no plugin {name!r}; accepted: module:Class{''.join(f', {p}' for p in sorted(points))}"
        )
    module, _, attribute = target.partition(":")
    try:
        return Hung(name, getattr(importlib.import_module(module), attribute)(**options))
    except Exception as error:  # the operator's module and class may raise anything
        return Hung(name, error=describe(error))
