"""Tensors from JSON to messages and back, and gRPC's configuration: the pure parts."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from empd.connectors.failures import BadResponse, InvalidInput
from empd.connectors.protocol import kserve
from empd.connectors.protocol.grpc_config import GRPCConfig, channel_options, service_config, target_of
from empd.connectors.protocol.kserve_tensors import DATATYPES, Tensor, pack, tensor_of, unpack
from empd.connectors.protocol.retry import RetryConfig

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "empd" / "connectors" / "protocol"

_INTEGERS = {
    name: st.integers(-(1 << 8 * struct.calcsize(code) - 1), (1 << 8 * struct.calcsize(code) - 1) - 1)
    if name.startswith("INT")
    else st.integers(0, (1 << 8 * struct.calcsize(code)) - 1)
    for name, (_, code, kind) in DATATYPES.items()
    if kind is int
}
ELEMENTS: dict[str, st.SearchStrategy[Any]] = {
    **_INTEGERS,
    "BOOL": st.booleans(),
    "FP16": st.floats(width=16, allow_nan=False),
    "BF16": st.integers(-256, 256).map(float),  # eight bits of mantissa
    "FP32": st.floats(width=32, allow_nan=False),
    "FP64": st.floats(allow_nan=False),
    "BYTES": st.binary(max_size=40),
}
TENSORS = st.sampled_from(sorted(DATATYPES)).flatmap(
    lambda name: st.lists(ELEMENTS[name], max_size=20).map(lambda data: {"name": "x", "datatype": name, "data": data})
)


@given(TENSORS, st.booleans())
def test_a_tensor_survives_the_way_there_and_back(value: dict[str, Any], raw: bool) -> None:
    request = kserve.infer_request({"model": "m", "inputs": [value], "raw": raw}, "", "id")
    request = type(request).FromString(request.SerializeToString())
    assert bool(request.raw_input_contents) == (raw or value["datatype"] in ("FP16", "BF16"))
    response = kserve.method("ModelInfer").response(model_name="m")
    sent = request.inputs[0]
    output = response.outputs.add(name=sent.name, datatype=sent.datatype, shape=sent.shape)
    # Field by field: the server's side of the same contents.
    output.contents.MergeFrom(sent.contents)
    response.raw_output_contents.extend(request.raw_input_contents)
    (found,) = kserve.infer_result(response)["outputs"]
    texts = [item.encode() if isinstance(item, str) else item for item in found["data"]]
    assert texts == value["data"]
    assert found["shape"] == [len(value["data"])]


@given(TENSORS)
def test_raw_contents_are_what_the_datatype_says(value: dict[str, Any]) -> None:
    tensor = tensor_of(value)
    raw = pack(tensor)
    assert unpack(tensor.datatype, raw) == tensor.data
    assert tensor_of({**value, "shape": [len(tensor.data)], "data": raw}).data == raw


@given(st.floats(width=32))
def test_bf16_is_the_nearest_of_its_kind(value: float) -> None:
    (found,) = unpack("BF16", pack(Tensor("x", "BF16", (1,), [value])))
    if math.isnan(value):
        assert math.isnan(found)
        return
    bits = struct.unpack("<I", struct.pack("<f", value))[0] & 0xFFFF0000
    low, high = (struct.unpack("<f", struct.pack("<I", min(bits + step, 0xFFFF0000)))[0] for step in (0, 0x10000))
    assert found in (low, high)
    if math.isfinite(low) and math.isfinite(high):
        assert abs(found - value) <= min(abs(low - value), abs(high - value))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (7, "an input is an object"),
        ({"name": "x", "datatype": "INT9", "data": []}, "no datatype 'INT9'"),
        ({"name": "x", "datatype": "INT32", "data": 1}, "neither a list nor bytes"),
        ({"name": "x", "datatype": "INT32", "shape": [2], "data": [1]}, "1 values do not fill the shape"),
        ({"name": "x", "datatype": "INT32", "shape": [-1], "data": [1]}, "no list of sizes"),
        ({"name": "x", "datatype": "INT32", "shape": [1 << 20, 1 << 20], "data": []}, "more than"),
        ({"name": "x", "datatype": "INT32", "shape": [2], "data": b"\0\0\0\0"}, "are not 2 values"),
        ({"name": "x", "datatype": "INT32", "data": ["1"]}, "'1' is no INT32"),
        ({"name": "x", "datatype": "BOOL", "data": [1]}, "1 is no BOOL"),
        ({"name": "x", "datatype": "INT8", "data": [300]}, "INT8"),
        ({"name": "x", "datatype": "FP32", "data": [1e300]}, "FP32"),
        ({"name": "x", "datatype": "INT32", "data": [[1], 2]}, "mixes values and lists"),
    ],
)
def test_what_is_no_tensor_is_the_jobs_fault(value: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        kserve.infer_request({"model": "m", "inputs": [value]}, "", "")


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ([], "must be an object"),
        ({"inputs": []}, "names a model"),
        ({"inputs": [], "model": "m", "imputs": 1}, "'imputs'"),
        ({"inputs": [], "model": "m", "outputs": [1]}, "outputs: a list of names"),
        ({"inputs": [], "model": "m", "parameters": {"a": []}}, "neither text, number"),
        ({"inputs": [], "model": "m", "parameters": {"a": 1 << 70}}, "parameters"),
    ],
)
def test_what_is_no_request_is_the_jobs_fault(payload: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        kserve.infer_request(payload, "", "")


def test_nested_data_is_row_major() -> None:
    value = {"name": "x", "datatype": "INT32", "shape": [2, 3], "data": [[1, 2, 3], [4, 5, 6]]}
    assert tensor_of(value).data == [1, 2, 3, 4, 5, 6]


def test_a_stream_answer_is_read_in_both_dialects() -> None:
    bare = kserve.method("ModelInfer").response(model_name="m", model_version="v1", id="7")
    bare.outputs.add(name="x", datatype="INT32", shape=[1]).contents.int_contents.append(4)
    wrapped = kserve.method("ModelStreamInfer").response(infer_response=bare)
    for server in ("", "mlserver", "other"):
        assert kserve.stream_answer(bare.SerializeToString(), server) == bare
    for server in ("", "triton"):
        assert kserve.stream_answer(wrapped.SerializeToString(), server) == bare
    lean = kserve.method("ModelInfer").response(model_name="m")  # looks like an error of Triton's
    assert kserve.stream_answer(lean.SerializeToString(), "mlserver") == lean
    failed = kserve.method("ModelStreamInfer").response(error_message="it broke")
    with pytest.raises(BadResponse, match="it broke"):
        kserve.stream_answer(failed.SerializeToString(), "triton")
    with pytest.raises(BadResponse):
        kserve.stream_answer(b"\xff\xff\xff", "")


@given(st.binary(max_size=60))
def test_any_bytes_in_a_stream_are_an_answer_or_a_bad_response(data: bytes) -> None:
    try:
        kserve.infer_result(kserve.stream_answer(data, ""))
    except BadResponse as error:
        assert error.message


def test_outputs_without_their_contents_are_a_bad_response() -> None:
    response = kserve.method("ModelInfer").response(model_name="m")
    response.outputs.add(name="x", datatype="FP16", shape=[1])
    with pytest.raises(BadResponse, match="without raw contents"):
        kserve.infer_result(response)
    response.raw_output_contents.extend([b"\0\0", b"\0\0"])
    with pytest.raises(BadResponse, match="1 outputs with 2 raw"):
        kserve.infer_result(response)


# --- configuration ---------------------------------------------------------------------------------------------------


def config(**given: Any) -> GRPCConfig:
    return msgspec.convert(given, GRPCConfig)


@pytest.mark.parametrize(
    ("given", "endpoint", "target"),
    [
        ({"target": "box:8001"}, "http://127.0.0.1:1", "box:8001"),
        ({}, "http://127.0.0.1:8003", "127.0.0.1:8003"),
        ({"addresses": ["10.0.0.1:1", "10.0.0.2:1"]}, "", "ipv4:10.0.0.1:1,10.0.0.2:1"),
        ({"addresses": ["[::1]:1", "[fe80::2]:2"]}, "", "ipv6:[::1]:1,[fe80::2]:2"),
        ({"addresses": ["box:1"]}, "", "box:1"),
    ],
)
def test_the_target_is_where_somebody_says(given: dict[str, Any], endpoint: str, target: str) -> None:
    assert target_of(config(**given), endpoint) == target


def test_addresses_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="literal IPv4"):
        target_of(config(addresses=["a:1", "b:1"]), "")
    with pytest.raises(ValueError, match="where is the service"):
        target_of(config(), "")


def test_retries_are_grpcs_own_policy() -> None:
    policy = service_config(RetryConfig(attempts_max=9, base_s=0.25, cap_s=2))["methodConfig"][0]["retryPolicy"]
    assert policy["maxAttempts"] == 5
    assert (policy["initialBackoff"], policy["maxBackoff"]) == ("0.250s", "2.000s")
    assert "methodConfig" not in service_config(RetryConfig(attempts_max=1))
    options = dict(channel_options(config(options={"grpc.max_receive_message_length": 7, "grpc.x": "y"})))
    assert json.loads(str(options["grpc.service_config"]))["loadBalancingConfig"] == [{"round_robin": {}}]
    assert (options["grpc.max_receive_message_length"], options["grpc.x"]) == (7, "y")


@pytest.mark.parametrize("name", ["kserve", "reflection"])
def test_the_descriptors_are_those_of_the_proto(name: str, tmp_path: Path) -> None:
    made = tmp_path / "made.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTOS), f"--descriptor_set_out={made}"]
    subprocess.run([*command, f"{name}.proto"], check=True, timeout=60)
    assert made.read_bytes() == (PROTOS / f"{name}.binpb").read_bytes(), "make protos"
