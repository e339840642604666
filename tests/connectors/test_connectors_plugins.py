"""Plugins: order, what they may change, what a failing one costs."""

from __future__ import annotations

import asyncio
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest
from test_connectors_seam import context_of

from empd.connectors import plugins
from empd.connectors.failures import ConnectorError, RefusedByService
from empd.connectors.plugins import FAILURES_MAX, Hung, Plugin, Plugins
from empd.errors import ConfigError
from empd.mapping import Mapping
from tests.box import mapping_of, service

OPERATORS = Path(__file__).parents[1] / "operators"


@pytest.fixture(autouse=True)
def _operators(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(OPERATORS))
    monkeypatch.delitem(sys.modules, "plugs", raising=False)


def hung(*names: str, **options: dict[str, Any]) -> tuple[Plugins, list[str]]:
    failed: list[str] = []
    loaded = [plugins.load(name, options.get(name.partition(":")[2], {})) for name in names]
    return Plugins(loaded, lambda plugin: failed.append(plugin.error)), failed


async def through(chain: Plugins, payload: Any) -> Any:
    context = context_of(payload)
    job = await chain.before(context.job, context)
    assert job is context.job
    return await chain.after(job, {"payload": context.payload}, context)


def test_they_are_called_in_the_order_declared() -> None:
    chain, failed = hung("plugs:Stamp", "plugs:Second", Stamp={"word": "one"}, Second={"word": "two"})
    result = asyncio.run(through(chain, {"words": ["zero"]}))
    assert result["payload"]["words"] == ["zero", "one", "two"]
    assert result["after"] == ["one", "two"]
    assert failed == []
    assert [plugin.shown()["version"] for plugin in chain.hung] == ["2", "2"]


def test_a_failing_one_is_passed_over_shown_and_at_last_let_be() -> None:
    chain, failed = hung("plugs:Broken", "plugs:Stamp")
    for _ in range(FAILURES_MAX):
        assert asyncio.run(through(chain, {}))["after"] == ["stamped"]
    broken = chain.hung[0]
    assert broken.off
    assert (broken.shown()["failures"], len(failed)) == (FAILURES_MAX, FAILURES_MAX)
    assert {text.split(":")[0] for text in failed} == {"before_job_process", "after_job_process"}
    assert "RuntimeError" in broken.error
    asyncio.run(through(chain, {}))
    assert broken.failures == FAILURES_MAX


def test_a_plugin_may_refuse_a_job() -> None:
    chain, failed = hung("plugs:Policy")
    with pytest.raises(RefusedByService, match="the policy says no"):
        asyncio.run(through(chain, {"bad": True}))
    assert asyncio.run(through(chain, {"good": True})) == {"payload": {"good": True}}
    assert failed == []


def test_one_that_does_not_answer_costs_its_time_and_no_more() -> None:
    class Sleeper(Plugin):
        name = "sleeper"
        timeout_s = 0.01

        async def before_job_process(self, job: Any, context: Any) -> None:
            await asyncio.sleep(3600)

        async def on_health_check(self, healthy: bool) -> bool:
            return not healthy

    chain = Plugins([Hung("sleeper", Sleeper())], lambda plugin: None)
    assert asyncio.run(through(chain, 1)) == {"payload": 1}
    assert chain.hung[0].error == "before_job_process: no answer in 0.01 s"
    assert asyncio.run(chain.health(True)) is False


def test_a_cancelled_job_is_no_failure_of_the_plugin() -> None:
    class Sleeper(Plugin):
        async def before_job_process(self, job: Any, context: Any) -> None:
            await asyncio.sleep(3600)

    chain = Plugins([Hung("sleeper", Sleeper())], lambda plugin: None)

    async def run() -> None:
        task = asyncio.create_task(through(chain, 1))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert chain.hung[0].failures == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Nowhere", "no plugin 'Nowhere'; accepted: module:Class"),
        ("no_such_module:X", "No module named 'no_such_module'"),
        ("plugs:Absent", "has no attribute 'Absent'"),
    ],
)
def test_one_that_cannot_be_loaded_is_shown_and_never_called(name: str, words: str) -> None:
    chain, _ = hung(name)
    assert words in chain.hung[0].shown()["error"]
    assert asyncio.run(through(chain, 1)) == {"payload": 1}


def test_one_that_does_not_start_is_not_called() -> None:
    class Bad(Plugin):
        def initialize(self, connector: Any) -> None:
            raise ConnectorError("no licence")

        async def after_job_process(self, job: Any, result: Any, context: Any) -> Any:
            return "wrong"

    chain = Plugins([Hung("bad", Bad())], lambda plugin: None)
    asyncio.run(chain.initialize(object()))
    assert (chain.hung[0].off, chain.hung[0].error) == (True, "initialize: no licence")
    assert asyncio.run(through(chain, 1)) == {"payload": 1}


def test_entry_points_name_plugins(monkeypatch) -> None:
    point = importlib.metadata.EntryPoint("audit", "plugs:Stamp", plugins.ENTRY_POINT_GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    assert plugins.load("audit", {"word": "x"}).name == "stamp"


def test_the_mapping_names_them_for_all_and_for_one() -> None:
    raw = {**mapping_of(s=service(plugins=["plugs:Second"])), "plugins": ["plugs:Stamp"]}
    mapping = Mapping.from_dict({**raw, "plugin_options": {"plugs:Stamp": {"word": "x"}}}, {})
    assert (mapping.plugins, mapping.services["s"].plugins) == (("plugs:Stamp",), ("plugs:Second",))
    assert mapping.plugin_options == {"plugs:Stamp": {"word": "x"}}
    with pytest.raises(ConfigError) as caught:
        Mapping.from_dict({**raw, "plugins": "plugs:Stamp", "plugin_options": [1]}, {})
    assert [problem.split(": ")[1] for problem in caught.value.problems] == ["plugins", "plugin_options"]
