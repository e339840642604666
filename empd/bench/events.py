"""The daemon's event stream, read beside what a scenario does."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Self

from empd.bench.running import Running
from empd.client import Client
from empd.errors import EmpdError
from empd.queue.rows import Kind
from empd.wire.frames import Reset, Rows


class Events:
    """Base of those who see what a daemon journals from now on, by a client and a thread of their own. `take` is called
    in that thread."""

    kinds: Sequence[Kind] = ()
    """Of these rows alone; none: of all."""

    def __init__(self, daemon: Running) -> None:
        self._daemon = daemon
        self.journal: dict[str, Any] = {}  # its status at the beginning

    def __enter__(self) -> Self:
        self._client: Client = self._daemon.client()
        self.journal = self._client.status()["journal"]
        self._thread = threading.Thread(target=self._read, name="events", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._thread.join()

    def take(self, frame: Rows | Reset) -> None:
        """The next rows, or that some were trimmed before they came."""
        raise NotImplementedError

    def _read(self) -> None:
        try:
            for frame in self._client.subscribe("bench", self.journal["last_seq"] + 1, kinds=self.kinds):
                self.take(frame)
        except EmpdError:
            return  # the client was closed, which is how this thread is ended
