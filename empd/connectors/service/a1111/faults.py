"""What the server's errors mean: by the class of the exception that it names, never by words.

`handle_exception` in its `modules/api/api.py` answers `{"error": class, "detail", "body", "errors"}` with the status of
the exception, else 500. FastAPI's own answers (no such route, a field of the wrong type) have no `error`.
"""

from __future__ import annotations

from empd.connectors.protocol.verdicts import Fault, Retry, Row, VerdictTable
from empd.errors import FailureClass
from empd.job import Cause

_F, _R = FailureClass, Retry
_OUT_OF_MEMORY = {"OutOfMemoryError", "MemoryError", "_ArrayMemoryError"}
_GPU = {"AcceleratorError", "CUDAError"}
_INPUT = {"UnidentifiedImageError", "DecompressionBombError", "RequestValidationError", "ValidationError"}
_REFUSED = {"Exception", "AssertionError"}
_CODE = {"ValueError", "TypeError", "KeyError", "IndexError", "AttributeError", "NansException"}

VERDICTS = VerdictTable(
    # A model that a question names.
    Row(_F.NOT_FOUND, _R.NEVER, Fault.JOB, "the server does not have this", statuses={404}, codes={"HTTPException"}),
    # Pictures that cannot be decoded, URLs that the server does not load: it answers 500 to both.
    Row(_F.INVALID_INPUT, _R.NEVER, Fault.JOB, "not accepted", statuses={500}, codes={"HTTPException"}),
    Row(_F.INVALID_INPUT, _R.NEVER, Fault.JOB, "not accepted", statuses={400, 422}),
    Row(_F.INVALID_INPUT, _R.NEVER, Fault.JOB, "not accepted", codes=_INPUT),
    # What its own code raises of its own accord: an upscaler or a refiner that there is none of, a prompt that is null.
    Row(_F.INVALID_INPUT, _R.NEVER, Fault.JOB, "not accepted", codes=_REFUSED),
    Row(
        _F.UNAVAILABLE,
        _R.LATER,
        Fault.OPERATOR,
        "the server has no such route; is it started with --api?",
        cause=Cause.UPSTREAM,
        statuses={404, 405},
    ),
    Row(_F.OUT_OF_MEMORY, _R.LATER, Fault.JOB, "out of memory", codes=_OUT_OF_MEMORY),
    Row(_F.GPU_LOST, _R.LATER, Fault.SERVICE, "the GPU failed", cause=Cause.GPU_FAULT, codes=_GPU),
    Row(_F.NOT_FOUND, _R.NEVER, Fault.JOB, "a file is missing at the server", codes={"FileNotFoundError"}),
    Row(_F.INTERNAL, _R.LATER, Fault.JOB, "the server's own code failed", codes=_CODE),
    code_places=("/error",),
    message_places=("/detail/0/msg", "/detail", "/errors", "/error"),
)
