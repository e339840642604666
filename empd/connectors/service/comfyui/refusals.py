"""What ComfyUI's errors mean: from its structured bodies to a class of failure, never from words in a message.

Source: `execution.py` of 0.3.64: `validate_prompt` (the answers of `POST /prompt`), `handle_execution_error`.
"""

from __future__ import annotations

import re
from typing import Any

from empd.connectors import failures
from empd.connectors.failures import ConnectorError, InvalidInput
from empd.connectors.service.comfyui.progress import describe
from empd.connectors.service.comfyui.workflow import Graph
from empd.errors import FailureClass

EVIDENCE_CHARS_MAX = 4_000
_ERRORS_SHOWN_MAX = 5

REFUSALS = ("no_prompt", "invalid_prompt", "prompt_no_outputs", "prompt_outputs_failed_validation")
"""`error.type` of a refused prompt: the workflow itself is wrong, another attempt would be refused as well."""

BLOCKED = "ExecutionBlocked"
"""A branch of the graph that a node closed on purpose; the prompt goes on, and may end well."""

# By the last part of `exception_type`: `torch.OutOfMemoryError` was `torch.cuda.OutOfMemoryError` before torch 2.5.
EXCEPTIONS: dict[str, type[ConnectorError]] = {
    "OutOfMemoryError": failures.OutOfMemory,
    "_ArrayMemoryError": failures.OutOfMemory,
    "MemoryError": failures.OutOfMemory,
    "AcceleratorError": failures.GpuLost,
    "FileNotFoundError": failures.NotFound,
    "TimeoutError": failures.ServiceTimeout,
    "ConnectionError": failures.ServiceUnavailable,
    "ConnectionRefusedError": failures.ServiceUnavailable,
    "ConnectionResetError": failures.ServiceUnavailable,
    "ClientConnectorError": failures.ServiceUnavailable,
    "DependencyCycleError": failures.InvalidInput,
    "NodeInputError": failures.InvalidInput,
    "NodeNotFoundError": failures.InvalidInput,
    "DuplicateNodeError": failures.InvalidInput,
    # A value of the wrong kind where validation does not look, as a text in place of a link.
    "TypeError": failures.InvalidInput,
}


def refused(body: Any, graph: Graph) -> ConnectorError | None:
    """What a 400 of `POST /prompt` means; None when the body is none of ComfyUI's."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or error.get("type") not in REFUSALS:
        return None
    node_errors = body.get("node_errors")
    if isinstance(node_errors, dict) and node_errors:
        return InvalidInput(f"{error.get('message')}: {node_problems(node_errors, graph)}")
    details = str(error.get("details") or "")
    # A node that has no class, or an unknown one, is named in these words alone.
    named = re.search(r"Node ID '#([^']+)'", details)
    if named:
        return InvalidInput(f"{describe(graph, named[1])}: {error.get('message')}")
    hint = "" if details else "the nodes may form a circle" if error["type"] == REFUSALS[-1] else ""
    return InvalidInput(": ".join(part for part in (str(error.get("message")), details, hint) if part))


def node_problems(node_errors: dict[str, Any], graph: Graph) -> str:
    """`node_errors` of an answer in one line: each node, its input, what is wrong."""
    lines = []
    for node, entry in node_errors.items():
        for error in entry.get("errors", ()) if isinstance(entry, dict) else ():
            name = error.get("extra_info", {}).get("input_name")
            where = f"{describe(graph, node)}, input {name}" if name else describe(graph, node)
            lines.append(f"{where}: {error.get('message')} ({error.get('type')}): {error.get('details')}")
    more = len(lines) - _ERRORS_SHOWN_MAX
    return "; ".join(lines[:_ERRORS_SHOWN_MAX]) + (f"; and {more} more" if more > 0 else "")


def execution_failed(data: dict[str, Any], graph: Graph) -> ConnectorError:
    """What an `execution_error` means: by the type of the exception that the node raised."""
    kind = str(data.get("exception_type") or "")
    message = str(data.get("exception_message") or "").strip() or kind or "the node failed"
    trace = data.get("traceback")
    evidence = "".join(map(str, trace)) if isinstance(trace, list) else ""
    node = str(data.get("node_id") or "")
    text = f"{describe(graph, node)}: {kind.rpartition('.')[2] or 'error'}: {message}"
    found = EXCEPTIONS.get(kind.rpartition(".")[2])
    evidence = f"{kind}\n{evidence}"[-EVIDENCE_CHARS_MAX:]
    if found is None:
        return ConnectorError(text, failure=FailureClass.INTERNAL, evidence=evidence)
    return found(text, evidence=evidence)
