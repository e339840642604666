"""Messages of the Open Inference Protocol over gRPC: requests from a job's payload, answers as values.

Two servers stream differently: Triton wraps each answer (`ModelStreamInferResponse`, with errors as text inside a
stream whose status is OK), MLServer sends bare `ModelInferResponse`. `stream_answer` reads both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import unknown_fields
from google.protobuf.message import DecodeError, Message

from empd.connectors.failures import BadResponse, InvalidInput
from empd.connectors.protocol.descriptors import Descriptors, MethodType
from empd.connectors.protocol.kserve_tensors import DATATYPES, Tensor, must_be_raw, pack, tensor_of, text_of, unpack

DESCRIPTORS = Descriptors.read(Path(__file__).with_name("kserve.binpb"))
_REQUEST = DESCRIPTORS.message("inference.ModelInferRequest")
_RESPONSE = DESCRIPTORS.message("inference.ModelInferResponse")
_WRAPPED = DESCRIPTORS.message("inference.ModelStreamInferResponse")

ACCEPTED = ("model", "version", "inputs", "outputs", "parameters", "raw", "stream", "requests")
"""What a payload may say."""


def method(name: str) -> MethodType:
    """A method of the inference service."""
    return DESCRIPTORS.method(f"inference.GRPCInferenceService/{name}")


def infer_request(payload: Any, model: str, request_id: str) -> Any:
    """A ModelInferRequest from `{"inputs": [tensor, …], "model", "version", "outputs", "parameters", "raw"}`.

    `raw`: send raw contents; done anyway where typed ones cannot carry a tensor. Raises InvalidInput.
    """
    if not isinstance(payload, dict) or not isinstance(payload.get("inputs"), list):
        raise InvalidInput('the payload must be an object with "inputs", a list of tensors')
    if unknown := sorted(payload.keys() - set(ACCEPTED)):
        raise InvalidInput(f"the payload says {unknown[0]!r}; accepted: {', '.join(ACCEPTED)}")
    model = payload.get("model") or model
    if not model:
        raise InvalidInput("neither the payload nor the service's configuration names a model")
    tensors = [tensor_of(value) for value in payload["inputs"]]
    request = _REQUEST(model_name=model, model_version=str(payload.get("version") or ""), id=request_id)
    _set_parameters(request.parameters, payload.get("parameters") or {})
    for wanted in payload.get("outputs") or ():
        name = wanted.get("name") if isinstance(wanted, dict) else wanted
        if not isinstance(name, str):
            raise InvalidInput("outputs: a list of names")
        request.outputs.add(name=name)
    raw = bool(payload.get("raw")) or any(map(must_be_raw, tensors))
    for tensor in tensors:
        added = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            request.raw_input_contents.append(pack(tensor))
        else:
            _set_contents(added, tensor)
    return request


def infer_result(response: Any, *, raw: bool = False) -> dict[str, Any]:
    """A ModelInferResponse as a value; outputs as flat lists, or as bytes where `raw` and the server sent them so.

    Raises BadResponse when outputs and contents do not fit together.
    """
    contents = list(response.raw_output_contents)
    if contents and len(contents) != len(response.outputs):
        raise BadResponse(f"{len(response.outputs)} outputs with {len(contents)} raw contents")
    outputs = []
    for number, output in enumerate(response.outputs):
        data = _data(output, contents[number] if contents else None, raw)
        found = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape), "data": data}
        if output.parameters:
            found["parameters"] = _parameters(output.parameters)
        outputs.append(found)
    result: dict[str, Any] = {"model": response.model_name, "version": response.model_version, "outputs": outputs}
    if response.parameters:
        result["parameters"] = _parameters(response.parameters)
    return result


def stream_answer(data: bytes, server: str) -> Any:
    """One answer of ModelStreamInfer as a ModelInferResponse; `server` is the name in the server's metadata.

    Raises BadResponse for what is neither form, and for an error inside the stream.
    """
    wrapped = _WRAPPED()
    try:
        wrapped.ParseFromString(data)
        bare = server == "mlserver" or len(unknown_fields.UnknownFieldSet(wrapped)) > 0
    except DecodeError:
        bare = True
    if not bare:
        if wrapped.error_message:
            raise BadResponse(wrapped.error_message)
        return wrapped.infer_response
    try:
        return _RESPONSE.FromString(data)
    except DecodeError as error:
        raise BadResponse(f"an answer in the stream is no ModelInferResponse: {error}") from None


def _set_contents(added: Any, tensor: Tensor) -> None:
    field = getattr(added.contents, DATATYPES[tensor.datatype].field)
    pack(tensor)  # a typed field is wider than INT8 or UINT16: what does not fit is the job's fault, not the server's
    field.extend(tensor.data)


def _data(output: Any, content: bytes | None, raw: bool) -> list[Any] | bytes:
    if content is not None:
        if raw:
            return content
        values = unpack(output.datatype, content)
    else:
        known = DATATYPES.get(output.datatype)
        if known is None or not known.field:
            raise BadResponse(f"output {output.name!r}: {output.datatype} without raw contents")
        values = list(getattr(output.contents, known.field))
    return [text_of(item) for item in values] if output.datatype == "BYTES" else values


def _set_parameters(target: Any, values: Any) -> None:
    if not isinstance(values, dict):
        raise InvalidInput("parameters: an object")
    for name, value in values.items():
        field = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}.get(type(value))
        if field is None:
            raise InvalidInput(f"parameters: {name!r} is neither text, number nor true or false")
        try:
            setattr(target[name], field, value)
        except ValueError as error:
            raise InvalidInput(f"parameters: {name!r}: {error}") from None


def _parameters(found: Any) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in found.items()
        if value.WhichOneof("parameter_choice")
    }


def fields_of(message: Message) -> dict[str, Any]:
    """A message's fields as a value, for showing."""
    found: dict[str, Any] = DESCRIPTORS.to_json(message)
    return found
