"""What the tests run in a process of its own: the binding loads its library once for each process."""

from __future__ import annotations

import json
import socket
import sys
from types import SimpleNamespace

from empd.lifecycle import Child, ChildKind
from empd.telemetry import process
from empd.telemetry.enumerate import enumerate_devices
from empd.telemetry.nvml import NoNvml


def run_process(control_fd: int, board_fd: int, interval_s: float) -> int:
    """The telemetry process as the supervisor enters it."""
    settings = SimpleNamespace(telemetry_interval_s=interval_s, heartbeat_s=0.05)
    control = socket.socket(fileno=control_fd)
    control.setblocking(False)
    child = Child(ChildKind.TELEMETRY, "telemetry", 0, 7, control, board_fd, 2, settings, None)
    return process.main(child)


if __name__ == "__main__":
    if sys.argv[1] == "enumerate":
        try:
            print(json.dumps(enumerate_devices()))
        except NoNvml as error:
            print(json.dumps(str(error)))
    else:
        sys.exit(run_process(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
