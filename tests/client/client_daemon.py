"""The whole daemon in a process of its own: broker, web and two workers that run a module of the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from empd import loading, mapping
from empd.client import Client
from empd.errors import NotRunning
from empd.settings import Settings
from empd.supervisor.process import run

ROOT = Path(__file__).parents[2]
OPERATOR_MODULE = """
import os, time

def echo(payload, context):
    return payload

def slow(payload, context):
    time.sleep(payload)
    return os.getpid()

def broken(payload, context):
    raise ValueError("this job cannot be done")
"""
START_TIMEOUT_S = 60.0


def mapping_document() -> dict[str, Any]:
    """Two CPU workers that offer the functions of the operator's module."""
    names = ("echo", "slow", "broken")
    return {
        "workers": {
            "cpu": {
                "services": list(names),
                "is_gpu_bound": False,
                "instances": 2,
                "job_service_required_map": [{"job_service_required": name, "worker_service": name} for name in names],
            }
        },
        "services": {
            name: {
                "connector": "PythonConnector",
                "type": "external",
                "is_gpu_bound": False,
                "retries": 0,
                "api_config": {"callable": f"operator_module:{name}"},
            }
            for name in names
        },
    }


class Daemon:
    """A running daemon in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.endpoint = f"ipc://{folder}/run/empd.sock"
        (folder / "operator_module.py").write_text(OPERATOR_MODULE)
        (folder / "mapping.json").write_text(json.dumps(mapping_document()))
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"}
        command = [sys.executable, __file__, str(folder)]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def kill_broker(self, client: Client) -> None:
        """SIGKILL to the broker that runs now."""
        os.kill(client.status()["pid"], signal.SIGKILL)

    def stop(self) -> None:
        """Ends the daemon with all its children."""
        for _ in range(2):
            self.process.terminate()  # the second one means: now
        try:
            self.process.wait(60)
        finally:
            self.process.kill()


@contextmanager
def running(folder: Path) -> Iterator[Daemon]:
    """A daemon that answers, stopped at the end."""
    daemon = Daemon(folder)
    try:
        with Client(daemon.endpoint, connect_timeout_s=START_TIMEOUT_S) as client:
            client.submit_many("echo", range(4)).results(START_TIMEOUT_S)
        yield daemon
    except NotRunning as error:
        raise AssertionError((folder / "log").read_text()) from error
    finally:
        daemon.stop()


def main(folder: str) -> int:
    """Runs the daemon until it is stopped."""
    flags = {
        "mapping": f"{folder}/mapping.json",
        "state_dir": f"{folder}/state",
        "runtime_dir": f"{folder}/run",
        "gpus": "none",
        "http": "127.0.0.1:0",
    }

    def load() -> tuple[Settings, mapping.Mapping]:
        loaded = loading.load(flags)
        return loaded, mapping.Mapping.load(loaded.mapping)

    return run(*load(), load)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
