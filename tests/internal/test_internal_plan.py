"""What the mapping says of internal services, and which servers, ports, limits and workers follow from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from empd.device import Device, virtual_devices
from empd.errors import ConfigError
from empd.internal import INSTANCES_PER_GPU_MAX, InternalServer, ServerInstance, name_at, offset_of
from empd.lifecycle import ChildKind
from empd.mapping import Mapping
from empd.samples import mapping_schema
from empd.settings import Settings
from empd.supervisor.kinds import kinds
from empd.supervisor.plan import make_plan
from empd.supervisor.restart import Action, Event, Goal, Life, State, step
from empd.supervisor.rollout import ORDER
from empd.supervisor.stopping import STOP_STEPS

SETTINGS = Settings(state_dir=Path("/nowhere/state"), runtime_dir=Path("/nowhere/run"))
LEAST = {"command": ["comfyui", "--port", "{port}"], "base_port": 8188}


def raw_of(gpu: bool = True, worker: dict[str, Any] | None = None, **server: Any) -> dict[str, Any]:
    return {
        "workers": {"images": {"services": ["comfyui"], "is_gpu_bound": gpu, **(worker or {})}},
        "services": {
            "comfyui": {
                "connector": "SimulationConnector",
                "type": "internal",
                "is_gpu_bound": gpu,
                "server": {**LEAST, **server},
            }
        },
    }


def mapping_of(**more: Any) -> Mapping:
    return Mapping.from_dict(raw_of(**more), {})


def problems_of(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        Mapping.from_dict(raw, {})
    return "\n".join(caught.value.problems)


def plan_of(mapping: Mapping, devices: int) -> list[tuple[str, int]]:
    return [(each.name, each.port) for each in mapping.server_plan(virtual_devices(devices))]


# --- instances, ports, workers ---------------------------------------------------------------------------------------


def test_one_server_on_each_gpu_at_base_port_and_index():
    assert plan_of(mapping_of(), 3) == [("comfyui@gpu0", 8188), ("comfyui@gpu1", 8189), ("comfyui@gpu2", 8190)]


def test_several_instances_on_a_gpu_have_a_worker_each():
    mapping, devices = mapping_of(instances_per_gpu=2), virtual_devices(2)
    assert [each.name for each in mapping.worker_plan(devices)] == [
        "images-gpu0", "images-gpu1", "images-gpu0.1", "images-gpu1.1"
    ]  # fmt: skip
    used = [mapping.server_for("comfyui", each.device, each.lap) for each in mapping.worker_plan(devices)]
    assert [(each.name, each.port) for each in used if each is not None] == [
        ("comfyui@gpu0", 8188), ("comfyui@gpu1", 8190), ("comfyui@gpu0.1", 8189), ("comfyui@gpu1.1", 8191)
    ]  # fmt: skip


def test_the_ports_come_from_the_environment():
    raw = raw_of(base_port="${COMFYUI_BASE_PORT:-8188}", instances_per_gpu="${COMFYUI_INSTANCES_PER_GPU:-1}")
    assert plan_of(Mapping.from_dict(raw, {}), 1) == [("comfyui@gpu0", 8188)]
    environ = {"COMFYUI_BASE_PORT": "9000", "COMFYUI_INSTANCES_PER_GPU": "2"}
    assert plan_of(Mapping.from_dict(raw, environ), 1) == [("comfyui@gpu0", 9000), ("comfyui@gpu0.1", 9001)]


def test_the_samples_comfyui_is_sound_when_it_is_switched_on():
    raw = json.loads((Path(__file__).resolve().parents[2] / "etc" / "service-mapping.json").read_text())
    worker = raw["workers"]["comfyui"] = raw["workers"].pop("// comfyui")
    for name in worker["services"]:
        raw["services"][name] = raw["services"].pop(f"// {name}")
    assert plan_of(Mapping.from_dict(raw, {}), 2) == [("comfyui@gpu0", 8188), ("comfyui@gpu1", 8189)]


def test_only_servers_that_a_worker_uses_are_run():
    assert plan_of(mapping_of(worker={"instances": 1}), 4) == [("comfyui@gpu0", 8188)]
    assert plan_of(mapping_of(worker={"instances": 0}), 4) == []
    assert plan_of(mapping_of(), 0) == []


def test_a_service_without_a_gpu_has_one_server_for_all_workers():
    assert plan_of(mapping_of(gpu=False, worker={"instances": 3}), 2) == [("comfyui@box", 8188)]


@given(st.integers(1, INSTANCES_PER_GPU_MAX), st.integers(0, 63), st.integers(0, INSTANCES_PER_GPU_MAX - 1))
def test_every_instance_has_a_port_and_a_name_of_its_own_and_both_lead_to_each_other(
    per_gpu: int, gpu: int, number: int
):
    server = InternalServer(command=("s",), base_port=1000, instances_per_gpu=per_gpu)
    one = ServerInstance("s", server, number % per_gpu, Device(gpu, f"GPU-{gpu}", "card", 1))
    assert offset_of(one.name, server) == one.offset == one.port - 1000
    assert name_at("s", server, True, one.offset) == one.name
    assert one.offset == gpu * per_gpu + number % per_gpu
    assert one.endpoint == f"http://127.0.0.1:{one.port}"


def test_placeholders_are_filled_and_other_braces_stay():
    one = mapping_of(instances_per_gpu=2).server_plan([Device(3, "GPU-abc", "card", 1)])[1]
    text = '{port} {gpu_index} {gpu_uuid} {instance} {other} {"port": {}}'
    assert one.fill(text) == '8195 3 GPU-abc 1 {other} {"port": {}}'
    box = mapping_of(gpu=False).server_plan([])[0]
    assert box.fill("{port} {gpu_index}") == "8188 {gpu_index}"


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "key", "accepted"),
    [
        ({"command": []}, "server.command", "a list of strings, the program first"),
        ({"command": "comfyui --port 1"}, "server.command", "a list of strings, the program first"),
        ({"base_port": 0}, "server.base_port", "a whole number from 1 to 65535"),
        ({"base_port": "${PORT}"}, "server.base_port", "the variable PORT is not set"),
        ({"instances_per_gpu": 17}, "server.instances_per_gpu", "a whole number from 1 to 16"),
        ({"health_url": "127.0.0.1"}, "server.health_url", "http://… or https://…"),
        ({"hang_s": 0}, "server.hang_s", "a number above 0"),
        ({"stop_signal": "SIGHUP"}, "server.stop_signal", '"SIGTERM" or "SIGINT"'),
        ({"vram_max_bytes": "much"}, "server.vram_max_bytes", 'a size such as "512 MiB"'),
        ({"prot": 1}, "server.prot", "unknown key"),
        ({"environment": {"CUDA_VISIBLE_DEVICES": ""}}, "server.environment.CUDA_VISIBLE_DEVICES", "set by the daemon"),
    ],
)  # fmt: skip
def test_each_mistake_is_named_by_its_key_with_what_is_accepted(server: dict[str, Any], key: str, accepted: str):
    text = problems_of(raw_of(**server))
    assert f"services.comfyui.{key}" in text
    assert accepted in text


@pytest.mark.parametrize(
    ("server", "key"),
    [
        ({"instances_per_gpu": 2}, "instances_per_gpu"),
        ({"vram_max_bytes": "1 GiB"}, "vram_max_bytes"),
        ({"command": ["s", "--gpu", "{gpu_index}"]}, "command[2]"),
        ({"environment": {"CARD": "{gpu_uuid}"}}, "environment.CARD"),
        ({"working_directory": "/srv/{gpu_index}"}, "working_directory"),
    ],
)
def test_what_needs_a_gpu_is_refused_where_there_is_none(server: dict[str, Any], key: str):
    assert f"services.comfyui.server.{key}" in problems_of(raw_of(gpu=False, **server))


def test_internal_and_server_belong_together():
    raw = raw_of()
    raw["services"]["comfyui"]["type"] = "external"
    assert "services.comfyui.type" in problems_of(raw)
    raw = raw_of()
    del raw["services"]["comfyui"]["server"]
    assert (
        'services.comfyui.server: missing; accepted: an object with at least command and base_port, or type "exter'
        in (problems_of(raw))
    )
    raw["services"]["comfyui"]["server"] = 7
    assert "services.comfyui.server: 7 is not an object" in problems_of(raw)


def test_a_worker_has_room_for_eight_leases_and_names_fit_the_board():
    raw = raw_of()
    for number in range(9):
        raw["services"][f"s{number}"] = raw["services"]["comfyui"]
        raw["workers"]["images"]["services"].append(f"s{number}")
    assert "workers.images.services: 10 internal ones; accepted: at most 8" in problems_of(raw)
    raw = raw_of()
    raw["services"]["x" * 39] = raw["services"]["comfyui"]
    assert "too long a name for an internal service" in problems_of(raw)


def test_two_servers_on_one_port_are_refused_before_anything_starts():
    raw = raw_of()
    other = json.loads(json.dumps(raw["services"]["comfyui"]))
    other["server"]["base_port"] = 8189
    raw["services"]["upscaler"] = other
    raw["workers"]["images"]["services"].append("upscaler")
    mapping = Mapping.from_dict(raw, {})
    make_plan(SETTINGS, mapping, virtual_devices(1))
    with pytest.raises(ConfigError, match="comfyui@gpu1 and upscaler@gpu0 would share port 8189"):
        make_plan(SETTINGS, mapping, virtual_devices(2))
    with pytest.raises(ConfigError, match="ports up to 65535"):
        make_plan(SETTINGS, mapping_of(base_port=65535), virtual_devices(2))


def test_the_schema_knows_the_servers():
    schema = mapping_schema()
    server = schema["$defs"]["InternalServer"]
    assert server["additionalProperties"] is False
    assert set(server["required"]) == {"command", "base_port"}
    assert server["properties"]["base_port"]["anyOf"][1]["type"] == "string"


# --- rows of the supervisor's table ----------------------------------------------------------------------------------


def test_servers_start_before_workers_and_stop_after_them():
    specs = make_plan(SETTINGS, mapping_of(), virtual_devices(2)).specs
    assert [spec.name for spec in specs] == [
        "broker", "web", "comfyui@gpu0", "comfyui@gpu1", "images-gpu0", "images-gpu1"
    ]  # fmt: skip
    assert [spec.worker_type for spec in specs if spec.kind is ChildKind.SERVER] == ["comfyui", "comfyui"]
    where = {kind: number for number, stop in enumerate(STOP_STEPS) for kind in stop.kinds}
    assert set(where) == set(ORDER) == set(ChildKind)
    assert where[ChildKind.WORKER] < where[ChildKind.SERVER] < where[ChildKind.BROKER]
    assert ORDER.index(ChildKind.SERVER) < ORDER.index(ChildKind.WORKER)


def test_a_server_brings_its_own_limits_into_the_table():
    mapping = mapping_of(start_limit_s=77, stop_s=9, memory_max_bytes="2 GiB")
    plan = make_plan(SETTINGS, mapping, virtual_devices(1))
    rows = kinds(SETTINGS)
    limits = {spec.name: plan.policy(spec, rows[spec.kind].policy) for spec in plan.specs}
    server = limits["comfyui@gpu0"]
    assert (server.start_s, server.drain_s) == (77, SETTINGS.drain_s)
    # Its keeper needs all of stop_s for the server before the ladder may strike at the keeper.
    assert server.stop_s > 9
    assert server.term_grace_s > 9
    assert limits["images-gpu0"] == rows[ChildKind.WORKER].policy
    assert {spec.name: plan.memory_bytes_max(spec) for spec in plan.specs}["comfyui@gpu0"] == 3 << 30


def test_a_fingerprint_changes_with_every_field_and_with_nothing_else():
    def fingerprint(**server: Any) -> str:
        return make_plan(SETTINGS, mapping_of(**server), virtual_devices(1)).specs[2].fingerprint

    same = fingerprint(environment={"A": "1", "B": "2"})
    assert same == fingerprint(environment={"B": "2", "A": "1"})
    for change in ({"base_port": 1}, {"command": ["x"]}, {"environment": {"A": "1"}}, {"hang_s": 3}, {"stop_s": 3}):
        assert fingerprint(**{"environment": {"A": "1", "B": "2"}, **change}) != same


@given(st.lists(st.floats(0.01, 30), min_size=1, max_size=40))
def test_a_server_that_keeps_dying_waits_longer_and_is_never_given_up(lives_s: list[float]):
    """Each death leads to a start at once, a wait, or an open circuit; and each of these to a start."""
    plan = make_plan(SETTINGS, mapping_of(), virtual_devices(1))
    policy = plan.policy(plan.specs[2], kinds(SETTINGS)[ChildKind.SERVER].policy)
    now_ns = 10**9
    life, action = step(Life(goal=Goal.UP), Event.START, policy, now_ns, 0.5)
    for alive_s in lives_s:
        assert action is Action.SPAWN
        now_ns += int(alive_s * 1e9)
        life, _ = step(life, Event.READY, policy, now_ns, 0.5)
        life, action = step(life, Event.EXITED_BAD, policy, now_ns, 0.5)
        if action is not Action.SPAWN:
            assert life.state in (State.BACKOFF, State.OPEN)
            assert 0 < life.until_ns - now_ns <= policy.open_max_s * 1e9
            now_ns = life.until_ns
            life, action = step(life, Event.TIMER, policy, now_ns, 0.5)
