"""A double of what gives a machine's identity its tokens: an instance's metadata service, and App Service's endpoint.

Form of questions and answers: learn.microsoft.com, "How to use managed identities for Azure resources on a VM to get an
access token", and "Connect to Azure services in app code". Nobody signs the tokens.
"""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

TENANT = "ab1f708d-50f6-404c-a006-d71b2ac7a606"
RESOURCE = "https://storage.azure.com"
HEADER = "proof-of-the-machine"
INSTANCE_PATH = "/metadata/identity/oauth2/token"
APP_SERVICE_PATH = "/msi/token"


class TokenEndpoint:
    """On a free port, in a thread. `claims` go into the tokens; `refusal`: a status and a body in place of a token."""

    def __init__(self) -> None:
        self.lifetime_s = 86_399.0
        self.claims: dict[str, Any] = {}
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.given: list[str] = []
        self.wrong: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = outer._answer(self.path, dict(self.headers))
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json; charset=utf-8")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *parts: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, target: str, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
        path, _, query = target.partition("?")
        asked = dict(urllib.parse.parse_qsl(query))
        lower = {name.lower(): value for name, value in headers.items()}
        expected = {
            INSTANCE_PATH: ("2018-02-01", lower.get("metadata") == "true"),
            APP_SERVICE_PATH: ("2019-08-01", lower.get("x-identity-header") == HEADER),
        }
        version, allowed = expected.get(path, ("", False))
        if not allowed or asked.get("api-version") != version or asked.get("resource") != RESOURCE:
            self.wrong.append(target)
            return 400, {"error": "invalid_request", "error_description": "Required metadata header not specified"}
        if self.refusal is not None:
            return self.refusal
        now_s = int(time.time())
        ends_s = int(now_s + self.lifetime_s)
        claims: dict[str, Any] = {"aud": RESOURCE, "iss": f"https://sts.windows.net/{TENANT}/", "tid": TENANT}
        claims |= {"iat": now_s, "nbf": now_s - 5, "exp": ends_s, **self.claims}
        token = ".".join(_part(part) for part in ({"typ": "JWT", "alg": "RS256"}, claims, {"signed": "by nobody"}))
        self.given.append(token)
        body = {"access_token": token, "resource": RESOURCE, "token_type": "Bearer", "expires_on": str(ends_s)}
        return 200, {**body, "expires_in": str(int(self.lifetime_s)), "not_before": str(now_s - 5), "client_id": "c"}


def _part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
