"""A third-party server as the tests of internal services need one: slow, ill, leaking, deaf or loud on demand.

    python server_double.py PORT [START_S]

GET /health     200, or 503 while it is ill, or no answer while it is stuck
GET /facts      what it was started with
POST /work      {"value": x} → {"value": x, "pid": …, "port": …}; first does what "do" says:
                crash, ill, stuck, leak, deaf, loud, sleep
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

state: dict[str, Any] = {"ill": False, "stuck": False, "leaked": []}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        while state["stuck"]:
            time.sleep(0.05)
        if self.path == "/facts":
            self.answer(200, {"argv": sys.argv[1:], "environ": dict(os.environ), "cwd": os.getcwd(), "fds": fds()})
        else:
            self.answer(503 if state["ill"] else 200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match body.get("do"):
            case "crash":
                words = [f"before the end: {number}" for number in range(2000)]
                words.append(f"my token was {os.environ.get('OWN_TOKEN', '')}: the very last words")
                os.write(2, "\n".join(words).encode())
                os.kill(os.getpid(), signal.SIGSEGV)
                time.sleep(60)  # another thread may be the one that gets it
            case "ill" | "stuck" as what:
                state[what] = True
                if body.get("hold"):
                    time.sleep(60)
            case "leak":
                state["leaked"].append(b"x" * body["bytes"])
            case "deaf":
                state["deaf"] = True
            case "loud":
                for number in range(body["lines"]):
                    print(f"line {number} {'.' * 80}", flush=True)
            case "sleep":
                time.sleep(body["seconds"])
        self.answer(200, {"value": body.get("value"), "pid": os.getpid(), "port": self.server.server_port})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silent."""


def fds() -> list[str]:
    """What this process has open."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{entry}"))
        except FileNotFoundError:
            continue
    return found


def on_term(number: int, frame: Any) -> None:
    print("asked to end", flush=True)
    if not state.get("deaf"):
        threading.Thread(target=server.shutdown).start()


if __name__ == "__main__":
    print(f"starting on {sys.argv[1]}", flush=True)
    print("a word on stderr", file=sys.stderr, flush=True)
    print(f"my token is {os.environ.get('OWN_TOKEN', '')}", flush=True)
    if len(sys.argv) > 2:
        time.sleep(float(sys.argv[2]))
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    signal.signal(signal.SIGTERM, on_term)
    server.serve_forever()
