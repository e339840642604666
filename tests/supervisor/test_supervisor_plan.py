"""Which children follow from settings, mapping and devices; and the rows of the real table."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from supervisor_daemon import mapping_of

from empd.device import Device, virtual_devices
from empd.errors import ConfigError
from empd.lifecycle import ChildKind
from empd.mapping import Mapping
from empd.settings import Settings
from empd.supervisor.kinds import kinds
from empd.supervisor.plan import SLOTS, make_plan

GPU = Device(0, "GPU-a", "A100", 80 << 30)


def settings(**more) -> Settings:
    return Settings(state_dir=Path("/nowhere/state"), runtime_dir=Path("/nowhere/run"), **more)


def mapping(workers: int = 2, *, gpu: bool = False, **worker) -> Mapping:
    raw = mapping_of(workers, gpu=gpu)
    raw["workers"]["w"].update(worker)
    return Mapping.from_dict(raw, {})


def names(plan) -> list[str]:
    return [spec.name for spec in plan.specs]


def test_the_broker_comes_first_and_workers_last():
    assert names(make_plan(settings(), mapping(2), [])) == ["broker", "web", "w-0", "w-1"]


@pytest.mark.parametrize(
    ("devices", "interval_s", "present"),
    [([GPU], 5.0, True), ([GPU], 0.0, False), (virtual_devices(1), 5.0, False), ([], 5.0, False)],
)
def test_telemetry_runs_where_there_is_something_to_measure(devices, interval_s: float, present: bool):
    plan = make_plan(settings(telemetry_interval_s=interval_s), mapping(gpu=True), devices)
    assert ("telemetry" in names(plan)) == present


def test_gpu_workers_are_given_their_device():
    plan = make_plan(settings(), mapping(gpu=True), [GPU])
    assert plan.specs[-1].device == GPU
    assert plan.specs[-1].worker_type == "w"


@pytest.mark.parametrize(
    ("default_bytes", "own_bytes", "limit_bytes"),
    [(0, None, 0), (1000, None, 1500), (1000, 2000, 3000), (1000, 0, 0), (0, 2000, 3000)],
)
def test_the_hard_memory_limit_lies_above_the_one_that_recycles(default_bytes, own_bytes, limit_bytes):
    own = {} if own_bytes is None else {"memory_max_bytes": own_bytes}
    plan = make_plan(settings(worker_memory_max_bytes=default_bytes), mapping(1, **own), [])
    limits = {spec.name: plan.memory_bytes_max(spec) for spec in plan.specs}
    assert limits == {"broker": 0, "web": 0, "w-0": limit_bytes}


def test_more_children_than_slots_are_refused_before_anything_is_started():
    with pytest.raises(ConfigError, match=f"at most {SLOTS}"):
        make_plan(settings(), mapping(SLOTS), [])


def test_every_kind_has_a_row_whose_entry_is_a_function_of_this_package():
    rows = kinds(settings(drain_s=11.0, term_grace_s=3.0, heartbeat_s=9.0))
    assert set(rows) == set(ChildKind)
    for row in rows.values():
        module, _, function = row.entry.partition(":")
        assert importlib.util.find_spec(module.rpartition(".")[0]) is not None
        assert function == "main"
        # A beat that is late is not one that has stopped.
        assert row.heartbeat_s >= 10 * 9.0
    assert rows[ChildKind.WORKER].policy.drain_s == 11.0
    # The broker outlives whoever still has outcomes for it, and only it and the web are told of others.
    assert [kind for kind in ChildKind if rows[kind].hears_of] == [ChildKind.BROKER, ChildKind.WEB]
    assert rows[ChildKind.WORKER].policy.stop_s > 3.0
