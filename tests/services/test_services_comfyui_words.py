"""The pure parts of the ComfyUI connectors: frames, progress, workflows, templates, and what errors mean."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from services_comfyui import picture

from empd.connectors.failures import InvalidInput
from empd.connectors.service.comfyui.messages import Message, NodeText, Picture, read
from empd.connectors.service.comfyui.outputs import OutputFile, read_outputs
from empd.connectors.service.comfyui.progress import NodeProgress
from empd.connectors.service.comfyui.refusals import execution_failed, refused
from empd.connectors.service.comfyui.request import read_advanced, read_batch, read_request
from empd.connectors.service.comfyui.server import _entry_of
from empd.connectors.service.comfyui.templates import fill, set_seeds, template_of
from empd.connectors.service.comfyui.workflow import chance_seed, fingerprint, models_of, read_graph

# --- frames ----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=64) | st.text(max_size=64))
def test_whatever_bytes_come_nothing_is_raised(frame: Any) -> None:
    read(frame)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_whatever_json_comes_nothing_is_raised(value: Any) -> None:
    for frame in (json.dumps(value), json.dumps({"type": "executing", "data": value})):
        found = read(frame)
        assert found is None or isinstance(found, Message)


def test_frames_are_read() -> None:
    text = json.dumps({"type": "progress", "data": {"value": 1, "max": 2, "prompt_id": "p", "node": "3"}})
    assert read(text) == Message("progress", "p", {"value": 1, "max": 2, "prompt_id": "p", "node": "3"})
    assert read(struct.pack(">II", 1, 1) + b"jpeg") == Picture("", "", "image/jpeg", b"jpeg")
    assert read(struct.pack(">II", 1, 2) + b"png") == Picture("", "", "image/png", b"png")
    assert read(struct.pack(">II", 3, 2) + b"17" + "só".encode()) == NodeText("17", "só")
    about = json.dumps({"node_id": "9", "prompt_id": "p", "image_type": "image/png"}).encode()
    assert read(struct.pack(">II", 4, len(about)) + about + b"png") == Picture("9", "p", "image/png", b"png")
    assert read(struct.pack(">II", 4, 1 << 31) + about) is None
    assert read(struct.pack(">II", 7, 1) + about) is None


# --- progress --------------------------------------------------------------------------------------------------------

NODES = st.sampled_from(["1", "2", "3", "99"])
SAID = st.one_of(
    st.tuples(st.just("begin"), NODES),
    st.tuples(st.just("step"), NODES, st.integers(-1, 20), st.integers(-1, 20)),
    st.tuples(st.just("finish"), st.lists(NODES)),
    st.tuples(
        st.just("states"),
        st.dictionaries(
            NODES, st.fixed_dictionaries({"value": st.integers(0, 9), "max": st.integers(0, 9), "state": st.text()})
        ),
    ),
)


@given(st.lists(SAID))
def test_whatever_is_said_the_percentage_never_falls(said: list[tuple[Any, ...]]) -> None:
    progress = NodeProgress(picture())
    last = 0.0
    for name, *arguments in said:
        getattr(progress, name)(*arguments)
        fraction = progress.standing().fraction
        assert last <= fraction <= 1.0
        last = fraction
    progress.finish(("1", "2", "3"))
    assert progress.standing().fraction == 1.0


def test_steps_weigh() -> None:
    graph = {
        "1": {"class_type": "Loader", "inputs": {}},
        "2": {"class_type": "KSampler", "inputs": {"steps": 18}, "_meta": {"title": "Draft"}},
    }
    progress = NodeProgress(graph)
    progress.begin("1")
    progress.begin("2")
    assert progress.standing().fraction == 1 / 20
    progress.step("2", 9, 18)
    standing = progress.standing()
    assert standing.fraction == (1 + 9.5) / 20
    assert (standing.message, standing.step, standing.steps) == ("Draft (2), node 2 of 2, step 9 of 18", 9, 18)


# --- workflows -------------------------------------------------------------------------------------------------------

UI_FORMAT = {
    "last_node_id": 2,
    "nodes": [{"id": 1, "type": "EmptyImage", "widgets_values": [512, 512, 1, 0]}],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    "version": 0.4,
}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (UI_FORMAT, r"Export \(API\)"),
        (json.dumps(UI_FORMAT), r"Export \(API\)"),
        ({}, "no node"),
        ([], "expected an object"),
        ("{", "not JSON"),
        ({"1": {"inputs": {}}}, "node '1' has no class_type"),
        ({"1": {"class_type": "X", "inputs": []}}, "node '1' has inputs that are no object"),
    ],
)
def test_what_is_no_workflow_says_why(value: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_graph(value)


@pytest.mark.parametrize(
    "payload",
    [picture(), {"workflow": picture()}, {"prompt": picture()}, {"workflow": json.dumps(picture())}],
)
def test_a_payload_may_hold_its_workflow_in_several_ways(payload: Any) -> None:
    assert read_request(payload).graph == picture()
    assert read_request(json.dumps(payload).encode()).graph == picture()


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (None, "must be a workflow"),
        ([picture()], "must be a workflow"),
        (b"\xff", "not JSON"),
        ({"workflow": picture(), "colour": 1}, "colour"),
        ({"workflow": picture(), "files": {"a.png": "***"}}, r"files\.a\.png: not base64"),
        ({"workflow": picture(), "files": {"a.png": 7}}, r"files\.a\.png: expected bytes"),
        ({"workflow": picture(), "outputs": ["Nobody"]}, "no node 'Nobody'"),
        (UI_FORMAT, r"Export \(API\)"),
    ],
)
def test_a_payload_that_does_not_fit_says_why(payload: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_request(payload)


def test_workflows_that_differ_in_seeds_alone_are_alike() -> None:
    def sampler(seed: int, steps: int) -> Any:
        return {"1": {"class_type": "KSampler", "inputs": {"seed": seed, "steps": steps}}}

    assert fingerprint(sampler(1, 5)) == fingerprint(sampler(2, 5)) != fingerprint(sampler(1, 6))
    graph = {
        "1": {"class_type": "LoraLoader", "inputs": {"lora_name": "l.safetensors"}},
        "2": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "c.safetensors"}},
    }
    assert models_of(graph) == ["c.safetensors", "l.safetensors"]


def test_a_graph_is_copied() -> None:
    payload = {"workflow": picture(), "parameters": {"1.color": 5}}
    read_advanced(payload, "", 1)
    assert payload["workflow"] == picture()


# --- templates -------------------------------------------------------------------------------------------------------


def test_placeholders_keep_their_types() -> None:
    graph = picture()
    graph["1"]["inputs"] |= {"width": "{{width:64}}", "height": "{{ size }}", "batch_size": "{{many:one}}"}
    graph["3"]["inputs"]["filename_prefix"] = "{{who}}/{{width:64}}"
    filled = fill(template_of(graph), {"size": 8, "who": "me"})
    assert filled["1"]["inputs"] == {"width": 64, "height": 8, "batch_size": "one", "color": 255}
    assert filled["3"]["inputs"]["filename_prefix"] == "me/64"


NAMED = {
    "workflow": picture(),
    "parameters": {
        "size": {"targets": ["1.width", "EmptyImage.height"], "default": 8, "minimum": 1, "maximum": 64},
        "style": {"targets": ["3.filename_prefix"], "choices": ["oil", "ink"]},
    },
}


def test_named_parameters_reach_their_targets() -> None:
    graph = fill(template_of(NAMED), {"size": 16, "style": "ink", "SaveImage.extra": True})
    assert (graph["1"]["inputs"]["width"], graph["1"]["inputs"]["height"]) == (16, 16)
    assert graph["3"]["inputs"]["filename_prefix"] == "ink"
    assert graph["3"]["inputs"]["extra"] is True


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, r"parameters\.style: missing"),
        ({"style": "wax"}, r"'wax' is not one of 'oil', 'ink'"),
        ({"style": "oil", "size": 0}, "0 is less than 1"),
        ({"style": "oil", "size": 65}, "65 is more than 64"),
        ({"style": "oil", "size": "big"}, "expected a number"),
        ({"style": "oil", "sise": 1}, "there are: size, style"),
        ({"style": "oil", "9.width": 1}, "no node '9'"),
    ],
)
def test_values_that_do_not_fit_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        fill(template_of(NAMED), values)


@pytest.mark.parametrize("name", ["../secret", "a/b", ".hidden", "", "x\n"])
def test_a_template_is_a_name_and_no_path(name: str, tmp_path) -> None:
    (tmp_path.parent / "secret.json").write_text(json.dumps(picture()))
    with pytest.raises(InvalidInput, match=r"not a name|template or workflow is missing"):
        read_advanced({"template": name}, str(tmp_path), 1)


def test_seeds() -> None:
    graph = {
        "1": {"class_type": "KSampler", "inputs": {"seed": 1}},
        "2": {"class_type": "N", "inputs": {"seed": ["1", 0]}},
    }
    assert set_seeds(graph, 5, 1) == {"1": 5}
    assert set_seeds(graph, -1, 1) == set_seeds(graph, "random", 1) == {"1": chance_seed(1)}
    for wrong in (-2, 1 << 64, "some", True, 1.5):
        with pytest.raises(InvalidInput, match="seed"):
            set_seeds(graph, wrong, 1)
    with pytest.raises(InvalidInput, match="no node"):
        set_seeds(picture(), 1, 1)


@given(st.integers(0, 1 << 63), st.text(max_size=5))
def test_chance_seeds_can_be_shown_by_javascript(job_id: int, salt: str) -> None:
    assert 0 <= chance_seed(job_id, salt) < 1 << 53


@pytest.mark.parametrize("items", [[], [{"parameters": 3}], [{"seed": "x"}], "many"])
def test_a_batch_that_does_not_fit(items: Any) -> None:
    with pytest.raises(InvalidInput):
        read_batch({"workflow": picture(), "items": items}, "", 1)


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_outputs_are_sorted() -> None:
    shown = {
        "10": {"images": [{"filename": "b.png", "subfolder": "s", "type": "output"}], "animated": [True]},
        "9": {"gifs": [{"filename": "a.mp4", "type": "temp", "format": "video/mp4"}], "text": ["one", "two"]},
        "x": {"string": "three", "values": [1, {"a": 2}], "text": "four"},
    }
    found = read_outputs(shown, None, "always")
    clip, image = OutputFile("9", "gifs", "a.mp4", "", "temp"), OutputFile("10", "images", "b.png", "s", "output")
    assert found.files == [clip, image]
    assert found.texts == [("9", "one"), ("9", "two"), ("x", "three"), ("x", "four")]
    assert found.data == {"x": {"values": [1, {"a": 2}]}}
    assert read_outputs(shown, ["9"]).files == [clip]
    assert [file.filename for file in read_outputs(shown, None).files] == ["b.png"]


PLAIN = st.none() | st.integers(-9, 9) | st.text(max_size=8)
NESTED = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=8), PLAIN, max_size=3)
SHOWN = st.lists(NESTED | st.fixed_dictionaries({"filename": PLAIN, "type": PLAIN}), max_size=3)


@given(
    st.dictionaries(st.text(max_size=3), NESTED | st.dictionaries(st.text(max_size=8), SHOWN, max_size=3), max_size=4)
)
def test_whatever_nodes_show_nothing_is_raised(shown: Any) -> None:
    found = read_outputs(shown, None)
    msgspec.msgpack.encode(found.data)


@pytest.mark.parametrize(
    ("filename", "plain"),
    [
        ("ComfyUI_00001_.png", "ComfyUI.png"),
        ("my_pic_123456_.webp", "my_pic.webp"),
        ("AnimateDiff_00001.mp4", "AnimateDiff.mp4"),
        ("year_2024_.png", "year_2024_.png"),
        ("noextension_00001_", "noextension_00001_"),
    ],
)
def test_a_name_without_its_counter(filename: str, plain: str) -> None:
    assert OutputFile("1", "images", filename, "", "output").plain_name == plain


def test_an_entry_of_an_old_server_without_a_status_is_a_success() -> None:
    assert _entry_of({"outputs": {"1": {}}, "status": None}).completed
    assert not _entry_of({"status": {"status_str": "error", "completed": False, "messages": []}}).completed


# --- errors: each body of a real server ------------------------------------------------------------------------------


def answer(kind: str, message: str, details: str = "", node_errors: Any = None) -> dict[str, Any]:
    """A refusal of `POST /prompt`."""
    error = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return {"error": error, "node_errors": node_errors or {}}


def node_error(kind: str, message: str, details: str, name: str = "image") -> dict[str, Any]:
    """What is wrong with node 2."""
    error = {"type": kind, "message": message, "details": details, "extra_info": {"input_name": name}}
    return {"2": {"errors": [error], "dependent_outputs": ["3"], "class_type": "ImageInvert"}}


FAILED_VALIDATION = "prompt_outputs_failed_validation"
NODE_ERRORS = [
    ("required_input_missing", "Required input is missing", "image"),
    ("invalid_input_type", "Failed to convert an input value to a INT value", "image, wide, invalid literal"),
    ("value_not_in_list", "Value not in list", "image: 'x' not in []"),
    ("value_bigger_than_max", "Value 9 bigger than max of 1", "image"),
    ("value_smaller_than_min", "Value 0 smaller than min of 1", "image"),
    ("return_type_mismatch", "Return type mismatch between linked nodes", "image, received_type(VAE) mismatch"),
    ("bad_linked_input", "Bad linked input, must be a length-2 list of [node_id, slot_index]", "image"),
    ("custom_validation_failed", "Custom validation failed for node", "image - Invalid image file: x.png"),
    ("exception_during_validation", "Exception when validating node", "'9'"),
    ("exception_during_inner_validation", "Exception when validating inner node", "'9'"),
]


@pytest.mark.parametrize(("kind", "message", "details"), NODE_ERRORS)
def test_node_errors_are_invalid_input_with_node_and_input(kind: str, message: str, details: str) -> None:
    body = answer(FAILED_VALIDATION, "Prompt outputs failed validation", "", node_error(kind, message, details))
    error = refused(body, picture())
    assert isinstance(error, InvalidInput)
    for word in ("ImageInvert (2)", "input image", kind, message, details):
        assert word in error.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (answer("no_prompt", "No prompt provided", "No prompt provided"), "No prompt provided"),
        (answer("prompt_no_outputs", "Prompt has no outputs"), "Prompt has no outputs"),
        (
            answer("invalid_prompt", "Cannot execute because node X does not exist.", "Node ID '#2'"),
            "ImageInvert (2): Cannot execute",
        ),
        (
            answer(
                "invalid_prompt", "Cannot execute because a node is missing the class_type property.", "Node ID '#9'"
            ),
            "node (9): Cannot execute",
        ),
        (answer(FAILED_VALIDATION, "Prompt outputs failed validation"), "circle"),
    ],
)
def test_other_refusals_are_invalid_input_too(body: Any, words: str) -> None:
    error = refused(body, picture())
    assert isinstance(error, InvalidInput)
    assert words in error.message


@pytest.mark.parametrize("body", [None, [], {}, {"error": "no"}, {"error": {"type": "strange"}}])
def test_what_is_no_refusal_of_comfyui(body: Any) -> None:
    assert refused(body, picture()) is None


@pytest.mark.parametrize(
    ("exception_type", "failure", "retry"),
    [
        ("torch.OutOfMemoryError", "out_of_memory", True),
        ("torch.cuda.OutOfMemoryError", "out_of_memory", True),
        ("numpy._core._exceptions._ArrayMemoryError", "out_of_memory", True),
        ("MemoryError", "out_of_memory", True),
        ("torch.AcceleratorError", "gpu_lost", True),
        ("FileNotFoundError", "not_found", False),
        ("TimeoutError", "timeout", True),
        ("asyncio.exceptions.TimeoutError", "timeout", True),
        ("ConnectionRefusedError", "unavailable", True),
        ("requests.exceptions.ConnectionError", "unavailable", True),
        ("aiohttp.client_exceptions.ClientConnectorError", "unavailable", True),
        ("graph.DependencyCycleError", "invalid_input", False),
        ("comfy_execution.graph.NodeInputError", "invalid_input", False),
        ("comfy_execution.graph.NodeNotFoundError", "invalid_input", False),
        ("TypeError", "invalid_input", False),
        ("RuntimeError", "internal", True),
        ("ValueError", "internal", True),
        ("mypack.OutOfMemory", "internal", True),
        ("", "internal", True),
    ],
)
def test_a_node_that_failed_is_judged_by_the_type_of_its_exception(
    exception_type: str, failure: str, retry: bool
) -> None:
    data = {
        "prompt_id": "p",
        "node_id": "2",
        "node_type": "ImageInvert",
        "executed": [],
        "exception_message": "out of memory, timed out, not found\n",
        "exception_type": exception_type,
        "traceback": ['  File "nodes.py", line 1, in invert\n'],
        "current_inputs": {},
        "current_outputs": [],
    }
    error = execution_failed(data, picture())
    assert (error.failure.value, error.retry) == (failure, retry)
    assert error.message.startswith("ImageInvert (2): ")
    assert "nodes.py" in error.evidence
    assert not error.message.endswith("\n")
