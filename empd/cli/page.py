"""The daemon's HTTP API, for what only the web process knows: progress, events, jobs that have ended."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from empd import loading
from empd.errors import FailureClass, NotRunning, Refused

REQUEST_TIMEOUT_S = 10.0
EVENT_TIMEOUT_S = 60.0  # a silent stream is pinged every 15 s


def directory(endpoint: str) -> Path:
    """The runtime directory of the daemon at a local endpoint."""
    return Path(endpoint.removeprefix("ipc://")).parent if endpoint.startswith("ipc://") else loading.load().runtime_dir


def address(endpoint: str) -> str | None:
    """`HOST:PORT` where the daemon's web process listens; None where it is not known."""
    try:
        return (directory(endpoint) / "http").read_text().strip() or None
    except OSError:
        return None


class Page:
    """The API of one daemon."""

    def __init__(self, endpoint: str, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        found = address(endpoint)
        if found is None:
            place = directory(endpoint) / "http"
            raise NotRunning(f"the daemon's HTTP address is not known: {place} is missing; is `empd run` up?")
        self.address = found

    def get(self, path: str, **query: Any) -> Any:
        """The JSON document at a path. Raises NotRunning, or Refused with what the API says."""
        text = urlencode({name: value for name, value in query.items() if value is not None}, doseq=True)
        connection, response = self._open(f"{path}?{text}" if text else path, self._timeout_s)
        with _until_closed(connection):
            return json.loads(response.read())

    def events(self, path: str) -> Iterator[dict[str, Any]]:
        """The events of a stream, as they come, until it ends."""
        connection, response = self._open(path, EVENT_TIMEOUT_S)
        with _until_closed(connection):
            for line in response:
                if line.startswith(b"data:"):
                    event: dict[str, Any] = json.loads(line.removeprefix(b"data:"))
                    yield event

    def _open(self, path: str, timeout_s: float) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self.address, timeout=timeout_s)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise NotRunning(f"no web process answers at http://{self.address}: {error}") from None
        if response.status >= 400:
            body = response.read()
            connection.close()
            raise _refusal(response.status, body)
        return connection, response


@contextlib.contextmanager
def _until_closed(connection: http.client.HTTPConnection) -> Iterator[None]:
    """Closes the connection at the end; a peer that goes away in between is NotRunning."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, BrokenPipeError):
            raise  # standard output's, not the connection's
        raise NotRunning(f"the web process stopped answering: {error}") from None
    finally:
        connection.close()


def _refusal(status: int, body: bytes) -> Refused:
    try:
        document = json.loads(body)
        problem = document.get("error", document)
        return Refused(FailureClass(problem["failure"]), problem.get("message") or problem.get("detail") or "")
    except (ValueError, KeyError, AttributeError, TypeError):
        return Refused(FailureClass.BAD_RESPONSE, f"HTTP {status}: {body[:200].decode(errors='replace')}")
