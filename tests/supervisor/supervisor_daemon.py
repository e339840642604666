"""A supervisor in a process of its own, with played children, as the tests see it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.box import WAIT_S, is_alive, wait_until

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def mapping_of(workers: int = 2, *, gpu: bool = False) -> dict[str, Any]:
    """A mapping with one worker type `w`."""
    return {
        "workers": {
            "w": {
                "services": ["noop"],
                "is_gpu_bound": gpu,
                **({} if gpu else {"instances": workers}),
                "job_service_required_map": [{"job_service_required": "noop", "worker_service": "noop"}],
            }
        },
        "services": {
            "noop": {
                "connector": "SimulationConnector",
                "type": "external",
                "is_gpu_bound": gpu,
                "api_config": {"duration_s": 0},
            }
        },
    }


class Daemon:
    """A supervisor in a process of its own, with played children."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}"}
        self.behave()

    def configure(self, **raw: Any) -> None:
        raw.setdefault("mapping", mapping_of())
        part = self.folder / "config.part"
        part.write_text(json.dumps(raw))
        part.rename(self.folder / "config.json")

    def behave(self, **parts: str) -> None:
        """What children do, by name ("-" in a name is "_" here); holds for those that start from now on."""
        part = self.folder / "behaviour.part"
        part.write_text(json.dumps({name.replace("_", "-"): does for name, does in parts.items()}))
        part.rename(self.folder / "behaviour.json")

    def start(self, *, ready: bool = True, **raw: Any) -> None:
        self.configure(**raw)
        with (self.folder / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "supervisor_children.py"), str(self.folder / "config.json")],
                stderr=stderr,
                env=self.environment,
            )
        if ready:
            wait_until(lambda: "ready: " in self.stderr, "the daemon to be ready")
            wait_until(self.has_settled, "every child to be ready, or to have failed")

    def has_settled(self) -> bool:
        """No child is on its way up."""
        status = self.status()
        return status["pid"] == self.pid and not {each["state"] for each in status["children"]} & {"starting", "down"}

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def events(self, what: str = "", name: str = "") -> list[dict[str, Any]]:
        """What the children have reported, oldest first."""
        path = self.folder / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # being written
                found.append(json.loads(line))
        return [each for each in found if what in ("", each["what"]) and name in ("", each["name"])]

    def wait_events(self, count: int, what: str, name: str = "") -> list[dict[str, Any]]:
        return wait_until(
            lambda: found if len(found := self.events(what, name)) >= count else None, f"{count} × {what} of {name}"
        )

    def status(self) -> dict[str, Any]:
        """The daemon's status file."""
        return json.loads((self.folder / "run" / "supervisor.json").read_text())

    def child(self, name: str) -> dict[str, Any]:
        return next(each for each in self.status()["children"] if each["name"] == name)

    def wait_state(self, name: str, state: str, limit_s: float = WAIT_S) -> dict[str, Any]:
        return wait_until(
            lambda: found if (found := self.child(name))["state"] == state else None, f"{name} to be {state}", limit_s
        )

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def command(self, name: str, **record: Any) -> None:
        """Makes the child send a control record."""
        part = self.folder / "command.part"
        part.write_text(json.dumps({key: int(value) for key, value in record.items()}))
        part.rename(self.folder / f"command-{name}.json")

    def wait_exit(self, limit_s: float = WAIT_S) -> int:
        assert self.process is not None
        return self.process.wait(limit_s)

    def pids(self) -> list[int]:
        """Every process that ever was a child or grandchild."""
        return [each["pid"] for each in self.events("entered")] + [
            each["grandchild"] for each in self.events("grandchild")
        ]

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.pids():
            if is_alive(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
