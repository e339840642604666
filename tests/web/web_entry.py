"""Enters the web process the way the supervisor does: with a control socket and a board, in a process of its own."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

from empd.lifecycle import Child, ChildKind
from empd.mapping import Mapping
from empd.settings import Settings
from empd.web.process import main

if __name__ == "__main__":
    control_fd, board_fd, slot, directory, options = sys.argv[1:]
    root = Path(directory)
    settings = Settings(
        state_dir=root / "state", runtime_dir=root / "run", **{"http": "127.0.0.1:0", **json.loads(options)}
    )
    child = Child(
        kind=ChildKind.WEB,
        name="web",
        slot=int(slot),
        generation=1,
        control=socket.socket(fileno=int(control_fd)),
        board_fd=int(board_fd),
        evidence_fd=2,
        settings=settings,
        mapping=Mapping.load(None),
    )
    sys.exit(main(child))
