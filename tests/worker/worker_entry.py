"""Enters a worker as the supervisor does, from one JSON argument; run by the tests as a process of its own."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import msgspec

from empd.device import Device
from empd.lifecycle import Child, ChildKind
from empd.mapping import Mapping
from empd.settings import Settings
from empd.worker.process import main


def child(spec: dict) -> Child:
    raw = {"state_dir": Path(spec["dir"]) / "state", "runtime_dir": Path(spec["dir"]), **spec["settings"]}
    raw["python_path"] = tuple(Path(path) for path in raw.get("python_path", ()))
    return Child(
        kind=ChildKind.WORKER,
        name=spec["name"],
        slot=spec["slot"],
        generation=spec["generation"],
        control=socket.socket(fileno=spec["control"]),
        board_fd=spec["board"],
        evidence_fd=2,
        settings=Settings(**raw),
        mapping=Mapping.from_dict(spec["mapping"], os.environ),
        worker_type=spec["worker_type"],
        device=msgspec.convert(spec["device"], Device | None),
    )


if __name__ == "__main__":
    os._exit(main(child(json.loads(sys.argv[1]))))
