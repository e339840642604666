"""The service mapping: what it may say, every mistake by file and key, what follows for workers and job types."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from empd.builtin import BUILT_IN_CONNECTORS
from empd.connectors import registry
from empd.device import virtual_devices
from empd.errors import ConfigError
from empd.mapping import EMBEDDED, Mapping, RunLimits
from empd.samples import mapping_schema
from empd.substitution import substitute

REPOSITORY = Path(__file__).parents[2]

LEAST = """
{"workers": {"demo": {"services": ["square"], "is_gpu_bound": true, "job_service_required_map":
   [{"job_service_required": "square", "worker_service": "square"}]}},
 "services": {"square": {"connector": "PythonConnector", "type": "external", "is_gpu_bound": true,
   "api_config": {"callable": "mymodule:square"}}}}
"""

SEED: dict[str, Any] = {
    "workers": {
        "openai": {
            "services": ["openai-text", "openai-image"],
            "is_gpu_bound": False,
            "required_env": ["OPENAI_API_KEY", "OPENAI_IMAGE_MODEL"],
            "job_service_required_map": [
                {"job_service_required": "openai_text", "worker_service": "openai-text"},
                {"job_service_required": "openai_image", "worker_service": "openai-image"},
            ],
        }
    },
    "connectors": {
        "OpenAIText": {"path": "site.openai:Text", "description": "text"},
        "OpenAIImage": {"path": "site.openai:Image"},
    },
    "services": {
        "openai-text": {"connector": "OpenAIText", "type": "external", "required_env": ["OPENAI_API_KEY"]},
        "openai-image": {
            "connector": "OpenAIImage",
            "type": "external",
            "installer": None,
            "installer_filename": None,
            "is_gpu_bound": False,
            "build_stage": "base",
            "required_env": ["OPENAI_API_KEY", "CLOUD_STORAGE_PROVIDER"],
            "description": "OpenAI image generation API connector",
            "api_config": {
                "base_url": "${OPENAI_BASE_URL:-https://api.openai.com/v1}",
                "timeout": "${OPENAI_TIMEOUT:-60}",
                "image_models": "${OPENAI_IMAGE_MODELS:-dall-e-3,dall-e-2}",
            },
            "telemetry_logs": [{"path": "/workspace/logs/openai-sdk-*.log", "name": "openai", "description": "SDK"}],
        },
    },
}


def with_change(path: str, value: Any) -> dict[str, Any]:
    """The least mapping with one place changed."""
    raw: dict[str, Any] = json.loads(LEAST)
    place: Any = raw
    *keys, last = path.split("/")
    for key in keys:
        place = place[int(key) if key.isdecimal() else key]
    place[last] = value
    return raw


def problems_of(raw: Any, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Mapping.from_dict(raw, environ or {}, "m.json")
    return caught.value.problems


def test_the_least_mapping_loads_as_the_design_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(LEAST)
    mapping = Mapping.load(path, {})
    assert mapping.source == str(path)
    assert mapping.job_types() == {"square": [("demo", "square")]}
    assert [(plan.name, plan.device) for plan in mapping.worker_plan(virtual_devices(2))] == list(
        zip(["demo-gpu0", "demo-gpu1"], virtual_devices(2), strict=True)
    )
    assert mapping.worker_plan([]) == []


def test_the_seed_format_loads_with_all_its_fields() -> None:
    mapping = Mapping.from_dict(SEED, {"OPENAI_TIMEOUT": "5"})
    image = mapping.services["openai-image"]
    assert image.api_config == {
        "base_url": "https://api.openai.com/v1",
        "timeout": "5",
        "image_models": "dall-e-3,dall-e-2",
    }
    assert image.telemetry_logs[0].path == "/workspace/logs/openai-sdk-*.log"
    assert image.build_stage == "base"
    assert mapping.connector_path("OpenAIImage") == "site.openai:Image"
    assert mapping.connector_path("PythonConnector") == ""


def test_the_embedded_default_runs_every_job_type_without_a_gpu() -> None:
    mapping = Mapping.load(None, {})
    planned = {plan.worker_type for plan in mapping.worker_plan([])}
    assert planned == {"cpu"}
    for job_type, runners in mapping.job_types().items():
        assert planned & {worker for worker, _ in runners}, job_type
    assert {plan.name for plan in mapping.worker_plan(virtual_devices(2))} == {
        "gpu-gpu0",
        "gpu-gpu1",
        "cpu-0",
        "cpu-1",
    }
    assert mapping.slots("cpu", "echo") > mapping.slots("cpu", "simulation") == 1


def test_the_annotated_sample_loads_with_nothing_set() -> None:
    path = REPOSITORY / "etc" / "service-mapping.json"
    mapping = Mapping.load(path, {})
    assert mapping.job_types() == Mapping.load(None, {}).job_types()
    switched_on = json.loads(re.sub(r'"// (thumbnails?|MyConnector)"', r'"\1"', path.read_text()))
    whole = Mapping.from_dict(switched_on, {"PICTURES_DIR": "/p"})
    assert whole.job_types()["preview"] == [("thumbnails", "thumbnail")]
    assert whole.workers["thumbnails"].memory_max_bytes == 2 << 30
    assert whole.run_limits("preview") == RunLimits(60.0, 20.0, 2)


def switched_on() -> dict[str, Any]:
    """The sample with every remark that is an entry made one."""
    raw = json.loads((REPOSITORY / "etc" / "service-mapping.json").read_text())
    for section in ("workers", "connectors", "services", "assets"):
        raw[section] = {name.removeprefix("// "): entry for name, entry in raw[section].items()}
    return raw


VARIABLES = {"OPENAI_API_KEY": "k", "PICTURES_DIR": "/p", "VIDEOS_SAS": "s"}


def test_everything_in_the_sample_is_sound_when_it_is_switched_on() -> None:
    mapping = Mapping.from_dict(switched_on(), VARIABLES)
    assert {"fast-lane", "standard", "heavy", "comfyui", "a1111", "openai", "thumbnails"} <= set(mapping.workers)
    used = {service for worker in mapping.workers.values() for service in worker.services}
    assert used == set(mapping.services)
    for name, service in mapping.services.items():
        if service.connector in BUILT_IN_CONNECTORS:
            registry.configure(registry.load_class(service.connector), service.api_config, name, {})


def test_every_connector_to_a_service_with_a_family_is_in_the_sample() -> None:
    families = ("ComfyUI", "A1111", "OpenAI")
    older_names = {"ComfyUIWebSocketConnector"}
    known = {name for name in BUILT_IN_CONNECTORS if name.startswith(families)} - older_names
    assert len(known) == 19
    used = {service.connector for service in Mapping.from_dict(switched_on(), VARIABLES).services.values()}
    assert known <= used


def test_the_samples_pools_have_their_figures() -> None:
    mapping = Mapping.from_dict(switched_on(), VARIABLES)
    figures = {
        pool: (mapping.slots(pool, name), service.timeout_s, service.retries, service.health_interval_s)
        for pool, name in (("fast-lane", "quick"), ("heavy", "video"))
        for service in (mapping.services[name],)
    }
    assert figures == {"fast-lane": (10, 30.0, 2, 15.0), "heavy": (2, 300.0, 5, 60.0)}
    assert mapping.workers["standard"].is_gpu_bound


@pytest.mark.parametrize(
    ("variable", "value", "service", "seen"),
    [
        ("OPENAI_API_KEY", "sk", "openai-text", lambda s: s.api_config["api_key"]),
        ("OPENAI_BASE_URL", "http://h/v1", "openai-image", lambda s: s.api_config["base_url"]),
        ("OPENAI_IMAGE_MODEL", "m", "openai-img2img", lambda s: s.api_config["image_model"]),
        ("OPENAI_TIMEOUT_SECONDS", "7", "openai-text", lambda s: s.api_config["total_timeout_s"]),
        ("OPENAI_MAX_RETRIES", "9", "openai-responses", lambda s: str(s.retries)),
        ("OPENAI_MAX_CONCURRENT_JOBS", "4", "openai-text", lambda s: str(s.max_concurrent_jobs)),
        ("OPENAI_RESPONSES_MAX_CONCURRENT_JOBS", "6", "openai-responses", lambda s: str(s.max_concurrent_jobs)),
        ("COMFYUI_BASE_PORT", "9000", "comfyui", lambda s: str(s.server.base_port)),
        ("COMFYUI_INSTANCES_PER_GPU", "2", "comfyui", lambda s: str(s.server.instances_per_gpu)),
        ("COMFYUI_BRANCH", "stable", "comfyui", lambda s: s.installer.split()[3]),
        ("A1111_BASE_PORT", "9001", "a1111", lambda s: str(s.server.base_port)),
        ("HTTP_TIMEOUT_SECONDS", "11", "quick", lambda s: s.api_config["total_timeout_s"]),
    ],
)
def test_the_sample_honours_the_usual_variables(variable: str, value: str, service: str, seen: Any) -> None:
    plain = Mapping.from_dict(switched_on(), VARIABLES).services[service]
    given = Mapping.from_dict(switched_on(), {**VARIABLES, variable: value}).services[service]
    assert seen(given) == value != seen(plain)


@pytest.mark.parametrize(
    ("path", "value", "key", "said"),
    [
        ("workers/demo/services", ["sqare"], "workers.demo.services[0]", 'did you mean "square"?; accepted: square'),
        ("workers/demo/services", [], "workers.demo.services", "accepted: at least one of square"),
        ("workers/demo/services", ["square", "square"], "workers.demo.services[1]", "stands twice"),
        ("workers/demo/services", "square", "workers.demo.services", "accepted: a list of strings"),
        ("workers/demo/is_gpu_bound", False, "workers.demo.is_gpu_bound", "GPU-bound; accepted: true"),
        ("workers/demo/is_gpu_bound", "maybe", "workers.demo.is_gpu_bound", "accepted: true or false"),
        ("workers/demo/instances", -1, "workers.demo.instances", "a whole number from 0 to 256"),
        ("workers/demo/max_concurrent_jobs", 0, "workers.demo.max_concurrent_jobs", "a whole number from 1"),
        ("workers/demo/instnces", 1, "workers.demo.instnces", 'did you mean "instances"?'),
        (
            "workers/demo/environment",
            {"CUDA_VISIBLE_DEVICES": "0"},
            "workers.demo.environment.CUDA",
            "set by the daemon",
        ),
        ("workers/demo/memory_max_bytes", "2 GBB", "workers.demo.memory_max_bytes", '"512 MiB"'),
        ("workers/-bad", {"services": ["square"], "is_gpu_bound": True}, "workers.-bad", "accepted: letters"),
        ("workers/other", 5, "workers.other", "accepted: an object with the keys services"),
        (
            "workers/demo/job_service_required_map/0/worker_service",
            "cube",
            "workers.demo.job_service_required_map[0].worker_service",
            "not among the worker's services; accepted: square",
        ),
        (
            "workers/demo/job_service_required_map/0/job_service_required",
            "a b",
            "workers.demo.job_service_required_map[0].job_service_required",
            "accepted: a name",
        ),
        ("services/square/connector", "PythonConector", "services.square.connector", 'mean "PythonConnector"?'),
        ("services/square/type", "managed", "services.square.type", 'accepted: "external" or "internal"'),
        ("services/square/isolation", "fork", "services.square.isolation", '"thread" or "process" or "auto"'),
        ("services/square/timeout_s", "soon", "services.square.timeout_s", "accepted: a number from 0"),
        ("services/square/progress_timeout_s", 0, "services.square.progress_timeout_s", "a number above 0"),
        ("services/square/telemetry_logs", [{"name": "x"}], "services.square.telemetry_logs[0].path", "missing"),
        ("connectors", {"Mine": {}}, "connectors.Mine.path", '"module:Class"'),
        ("connectors", {"Mine": {"path": "./mine.js"}}, "connectors.Mine.path", '"module:Class"'),
        ("connectors", [], "connectors", "accepted: an object"),
        ("servces", {}, "servces", 'did you mean "services"?'),
    ],
)
def test_each_mistake_is_named_by_key_with_what_is_accepted(path: str, value: Any, key: str, said: str) -> None:
    raw = with_change(path, value)
    if path == "workers/demo/services":
        raw["workers"]["demo"]["job_service_required_map"] = []
    (problem,) = problems_of(raw)
    assert problem.startswith(f"m.json: {key}")
    assert said in problem
    assert "accepted: " in problem


def test_all_mistakes_are_named_at_once() -> None:
    raw = with_change("workers/demo/instances", "many")
    raw["workers"]["second"] = {"services": ["cube"], "required_envs": []}
    raw["services"]["square"]["retries"] = -1
    raw["services"]["third"] = {"connector": "Nowhere", "api_config": {"key": "${SECRET}"}}
    keys = [problem.split(": ")[1] for problem in problems_of(raw)]
    assert sorted(keys) == [
        "services.square.retries",
        "services.third.api_config.key",
        "services.third.connector",
        "workers.demo.instances",
        "workers.second.required_envs",
    ]


def test_a_worker_may_name_a_service_whose_own_entry_is_wrong() -> None:
    (problem,) = problems_of(with_change("services/square/retries", "x"))
    assert "services.square.retries" in problem


@pytest.mark.parametrize("raw", [None, [], 5, "x", {}, {"workers": []}, {"workers": {}, "services": None}])
def test_files_that_are_no_mapping_at_all_are_refused(raw: Any) -> None:
    assert all("accepted: " in problem for problem in problems_of(raw))


def test_a_file_that_cannot_be_read_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    for content, said in [
        (b'{"workers": {},\n  "services": }', "line 2 column 15: not JSON"),
        (b'{"workers": {}, "workers": {}, "services": {}}', "workers: the key stands twice"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b"[" * 100_000, "nested too deep"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            Mapping.load(path, {})
        assert said in caught.value.problems[0]
        assert caught.value.problems[0].startswith(str(path))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Mapping.load(tmp_path / "absent.json", {})


def test_a_missing_variable_is_named_once_with_its_key() -> None:
    raw = with_change("workers/demo/max_concurrent_jobs", "${JOBS}")
    raw["services"]["square"]["api_config"]["urls"] = ["x", "${HOST}:${PORT}"]
    places = {
        "JOBS": "workers.demo.max_concurrent_jobs",
        "HOST": "services.square.api_config.urls[1]",
        "PORT": "services.square.api_config.urls[1]",
    }
    assert problems_of(raw) == [
        f"m.json: {key}: the variable {name} is not set; accepted: {name} in the environment, or ${{{name}:-default}}"
        for name, key in places.items()
    ]
    mapping = Mapping.from_dict(raw, {"JOBS": "3", "HOST": "h", "PORT": ""})
    assert mapping.workers["demo"].max_concurrent_jobs == 3
    assert mapping.services["square"].api_config["urls"][1] == "h:"


@pytest.mark.parametrize("text", ["${", "${}", "${1A}", "${A", "${A:-${B}}", "${A-b}"])
def test_broken_variables_are_refused(text: str) -> None:
    problems = problems_of(with_change("services/square/description", text), {"A": "a", "B": "b"})
    assert len(problems) == 1
    assert "services.square.description" in problems[0]


WORDS = st.text(st.characters(blacklist_characters="${}\0", blacklist_categories=["Cs"]), max_size=12)


@given(WORDS, WORDS, WORDS, st.sampled_from(["unset", "empty", "set"]))
def test_variables_are_replaced_as_a_shell_does(before: str, default: str, value: str, how: str) -> None:
    environ = {} if how == "unset" else {"VAR": "" if how == "empty" else value}
    reported: list[str] = []
    result = substitute(f"{before}${{VAR:-{default}}}$${{", environ, "", lambda path, text: reported.append(text))
    assert result == before + ((environ.get("VAR") or default) + "${")
    assert reported == []


def test_replacement_is_what_sh_answers() -> None:
    texts = ["${A}", "${A:-x}", "${B:-x}", "${C:-x}", "a${B:-}b${A}", "$A", "${C:-x y:-z}"]
    environ = {"A": "1", "B": ""}
    for text in texts:
        if "$A" in text:
            expected = text  # only the braced form is ours
        else:
            shell = subprocess.run(["sh", "-c", f'printf %s "{text}"'], env=environ, capture_output=True, check=True)
            expected = shell.stdout.decode()
        assert substitute(text, environ, "", lambda *_: pytest.fail("reported")) == expected


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["workers", "services", "connectors", "a", "connector"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_loaded_or_refused_by_name(raw: Any) -> None:
    try:
        Mapping.from_dict(raw, {})
    except ConfigError as error:
        assert error.problems


def test_missing_env_keeps_services_back_and_names_the_variables() -> None:
    mapping = Mapping.from_dict(SEED, {})
    environ = {"OPENAI_API_KEY": "k", "OPENAI_IMAGE_MODEL": "m", "CLOUD_STORAGE_PROVIDER": ""}
    assert mapping.missing_env(environ) == {"openai": ["CLOUD_STORAGE_PROVIDER"]}
    assert mapping.missing_service_env("openai", "openai-text", environ) == []
    assert mapping.missing_service_env("openai", "openai-image", environ) == ["CLOUD_STORAGE_PROVIDER"]
    assert mapping.missing_service_env("openai", "openai-text", {}) == ["OPENAI_API_KEY", "OPENAI_IMAGE_MODEL"]
    assert mapping.missing_env({**environ, "CLOUD_STORAGE_PROVIDER": "azure"}) == {}


def test_a_workers_own_environment_counts() -> None:
    raw = with_change("workers/demo/environment", {"KEY": "x"})
    raw["workers"]["demo"]["required_env"] = ["KEY"]
    assert Mapping.from_dict(raw, {}).missing_env({}) == {}


@pytest.mark.parametrize(
    ("instances", "names"),
    [
        (None, ["demo-gpu0", "demo-gpu1", "demo-gpu2"]),
        (0, []),
        (1, ["demo-gpu0"]),
        (4, ["demo-gpu0", "demo-gpu1", "demo-gpu2", "demo-gpu0.1"]),
    ],
)
def test_gpu_bound_workers_are_spread_over_the_gpus(instances: int | None, names: list[str]) -> None:
    mapping = Mapping.from_dict(with_change("workers/demo/instances", instances), {})
    plan = mapping.worker_plan(virtual_devices(3))
    assert [item.name for item in plan] == names
    assert all(item.device is not None and f"gpu{item.device.index}" in item.name for item in plan)


def test_names_of_workers_are_unique_even_with_types_that_look_like_instances() -> None:
    raw = with_change("workers/demo", {"services": ["square"], "is_gpu_bound": True, "instances": 4})
    for name in ("demo-gpu0", "demo-gpu0.1", "demo-0"):
        raw["workers"][name] = {"services": ["plain"], "instances": 3}
    raw["services"]["plain"] = {"connector": "PythonConnector"}
    names = [plan.name for plan in Mapping.from_dict(raw, {}).worker_plan(virtual_devices(2))]
    assert len(set(names)) == len(names) == 13


def test_limits_of_a_job_type_are_the_most_generous() -> None:
    raw: dict[str, Any] = {
        "workers": {
            "a": {
                "services": ["x"],
                "job_service_required_map": [{"job_service_required": "j", "worker_service": "x"}],
            },
            "b": {
                "services": ["y"],
                "job_service_required_map": [{"job_service_required": "j", "worker_service": "y"}],
            },
        },
        "services": {
            "x": {"connector": "PythonConnector", "timeout_s": 5, "retries": 1},
            "y": {"connector": "PythonConnector", "timeout_s": 9, "retries": 2, "progress_timeout_s": 3},
        },
    }
    assert Mapping.from_dict(raw, {}).run_limits("j") == RunLimits(9.0, None, 2)
    raw["services"]["x"]["timeout_s"] = 0
    assert Mapping.from_dict(raw, {}).run_limits("j").timeout_s == 0.0
    del raw["services"]["x"]["timeout_s"]
    assert Mapping.from_dict(raw, {}).run_limits("j").timeout_s is None
    assert Mapping.from_dict(raw, {}).run_limits("unknown") == RunLimits(None, None, None)


def test_without_a_map_services_are_their_own_job_types() -> None:
    raw = with_change("workers/demo/job_service_required_map", [])
    assert Mapping.from_dict(raw, {}).job_types() == {"square": [("demo", "square")]}


def test_one_slot_unless_the_mapping_says_otherwise() -> None:
    assert Mapping.from_dict(json.loads(LEAST), {}).slots("demo", "square") == 1
    raw = with_change("workers/demo/max_concurrent_jobs", 8)
    assert Mapping.from_dict(raw, {}).slots("demo", "square") == 8
    raw["services"]["square"]["max_concurrent_jobs"] = 3
    assert Mapping.from_dict(raw, {}).slots("demo", "square") == 3


def test_schema_names_every_key_and_accepts_variables_for_numbers() -> None:
    schema = mapping_schema()
    assert set(schema["properties"]) == {
        "$schema", "workers", "connectors", "services", "assets", "plugins", "plugin_options",
    }  # fmt: skip
    worker = schema["$defs"]["WorkerType"]
    assert worker["additionalProperties"] is False
    assert worker["properties"]["max_concurrent_jobs"]["anyOf"][1]["type"] == "string"
    assert re.search(worker["properties"]["memory_max_bytes"]["anyOf"][1]["pattern"], "2 GiB")
    msgspec.json.encode(schema)


def test_the_embedded_mapping_is_not_changed_by_loading() -> None:
    before = json.dumps(EMBEDDED)
    Mapping.load(None, {})
    assert json.dumps(EMBEDDED) == before


# --- assets ----------------------------------------------------------------------------------------------------------


def with_assets(entries: Any, **service: Any) -> dict[str, Any]:
    entry = {"connector": "SimulationConnector", **service}
    return {"workers": {"w": {"services": ["s"]}}, "services": {"s": entry}, "assets": entries}


def test_a_service_takes_the_entry_it_names_else_the_default_else_this_machine() -> None:
    azure = {"provider": "azure", "container": "c", "account": "a", "key": "${KEY}"}
    mapping = Mapping.from_dict(with_assets({"default": azure}), {"KEY": "secret"})
    assert mapping.asset_config("s").container == "c"
    assert mapping.asset_config("s").secrets == ("secret",)
    mapping = Mapping.from_dict(with_assets({"default": azure, "disk": {"prefix": "x/y"}}, assets="disk"), {"KEY": ""})
    assert (mapping.asset_config("s").provider, mapping.asset_config("s").prefix) == ("local", "x/y")
    mapping = Mapping.from_dict(with_assets({}), {})
    assert mapping.asset_config("s").provider == "local"


@pytest.mark.parametrize(
    ("assets", "service", "problem"),
    [
        ({"x": {"provider": "aws"}}, {}, 'assets.x.provider: .*accepted: "local" or "azure"'),
        ({"x": {"provider": "azure"}}, {}, "assets.x.container: missing"),
        ({"x": {"provider": "azure", "container": "c"}}, {}, "assets.x.account: accepted"),
        (
            {"x": {"provider": "azure", "container": "c", "account": "a", "connection_string": "s"}},
            {},
            "assets.x.account: accepted",
        ),
        (
            {"x": {"provider": "azure", "container": "c", "account": "a", "key": "k", "sas": "s"}},
            {},
            "assets.x.key: accepted: at most one",
        ),
        ({"x": {"prefix": "../up"}}, {}, "assets.x.prefix: .*accepted: folders"),
        ({"x": {"cdn_attempts": 0}}, {}, "assets.x.cdn_attempts: .*from 1"),
        ({"x": {"contaner": "c"}}, {}, 'assets.x.contaner: unknown key; did you mean "container"'),
        ({"pictures": {}}, {"assets": "picture"}, 'services.s.assets: no entry "picture"; did you mean "pictures"'),
        ([], {}, "assets: missing or not an object"),
        ({"x": {"key": "${UNSET_KEY}"}}, {}, "assets.x.key: the variable UNSET_KEY is not set"),
    ],
)
def test_mistakes_in_assets_are_told_by_key(assets: Any, service: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Mapping.from_dict(with_assets(assets, **service), {})
    assert [True for text in caught.value.problems if re.search(problem, text)], caught.value.problems


def test_the_sample_takes_the_storage_variables() -> None:
    sample = REPOSITORY / "etc" / "service-mapping.json"
    environ = {
        "CLOUD_STORAGE_PROVIDER": "azure",
        "CLOUD_STORAGE_CONTAINER": "pictures",
        "AZURE_STORAGE_ACCOUNT": "mine",
        "AZURE_STORAGE_KEY": "a2V5",
        "CLOUD_CDN_URL": "https://cdn.example.org",
    }
    config = Mapping.load(sample, environ).asset_config("echo")
    assert (config.provider, config.container, config.account, config.key) == ("azure", "pictures", "mine", "a2V5")
    assert config.cdn_url == "https://cdn.example.org"
    assert Mapping.load(sample, {}).asset_config("echo").provider == "local"
