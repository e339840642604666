"""From the mapping's entry to a running server: the exec, and what its processes weigh."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess

from empd import prctl
from empd.internal import ServerInstance
from empd.lifecycle import parent_is_gone
from empd.processes import stack_dump

_EXIT_ORPHAN = 71
_CONNECT_S = 1.0
_HOST = "127.0.0.1"


def launch(instance: ServerInstance, output_fd: int) -> subprocess.Popen[bytes]:
    """Starts the server in a process group of its own, in the keeper's session; it dies with this process.

    It inherits the keeper's environment (in which nothing of the service manager's is left, and its GPU is pinned)
    and no descriptor but the three that everybody has. Raises OSError when it cannot be started.
    """
    server, parent_pid = instance.server, os.getpid()

    def tie() -> None:
        prctl.die_with_parent()
        prctl.allow_tracing_by(parent_pid)
        if parent_is_gone(parent_pid):
            os._exit(_EXIT_ORPHAN)

    return subprocess.Popen(
        [instance.fill(word) for word in server.command],
        stdin=subprocess.DEVNULL,
        stdout=output_fd,
        stderr=output_fd,
        cwd=instance.fill(server.working_directory) or None,
        env={**os.environ, **{name: instance.fill(value) for name, value in server.environment.items()}},
        process_group=0,
        preexec_fn=tie,  # noqa: PLW1509  no thread has been started yet
    )


def dump_stacks(pid: int, output_fd: int) -> subprocess.Popen[bytes] | None:
    """Has py-spy write the stacks of a Python server; None where there is no py-spy."""
    command = stack_dump(pid)
    if not command:
        return None
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output_fd, stderr=subprocess.DEVNULL)
    except OSError:
        return None


def is_taken(port: int) -> bool:
    """Somebody has the port already, be it the near end of a connection; or somebody answers there, whose health would
    be taken for the server's."""
    with socket.socket() as probe:
        # As servers do: what is left of their predecessors' connections is in nobody's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
        # While the port is bound a connection to it cannot get it for its own near end.
        with contextlib.suppress(OSError), socket.create_connection((_HOST, port), _CONNECT_S):
            return True
    return False
