"""empd itself: two workers, a service that gives back what it gets, through the public client."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from empd.bench.daemon import PLACE, Daemon, mapping_of
from peers.interface import RESULT_TIMEOUT_S, WORKERS, Peer


class EmpdPeer(Peer):
    """See the module."""

    name = "empd"
    package = "empd"
    settings = {
        "fast": "durability = memory (journal on tmpfs)",
        "durable": "durability = fsync, as shipped: a group commit before each acknowledgement",
    }

    def start(self) -> None:
        service = {"echo": {"api_config": {"duration_s": 0, "echo": True}}}
        held = {"connector": "PythonConnector", "api_config": {"callable": "peers.job:process"}}
        durability = "fsync" if self.setting == "durable" else "memory"
        mapping = mapping_of(service, instances=WORKERS, max_concurrent_jobs=512)
        mapping["services"]["held"] = held
        mapping["workers"]["held"] = {"services": ["held"], "is_gpu_bound": False}
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
        self._daemon = Daemon(mapping, PLACE, durability=durability)
        self._daemon.__enter__()
        self._client = self._daemon.client()
        self.broker_pid = self._daemon.child("broker").pid

    def park(self) -> None:
        self._client.operate("drain", [worker["name"] for worker in self._client.status()["workers"]])
        self._client.window = 1_000_000

    def put(self, payloads: Sequence[bytes]) -> Any:
        if len(payloads) == 1:
            return [self._client.submit("echo", payloads[0])]
        return self._client.submit_many("echo", payloads)

    def hold(self, payload: bytes) -> None:
        self._client.submit("held", payload, retries=0)

    def results(self, handles: Any) -> list[bytes]:
        if not isinstance(handles, list):
            deque(handles.as_completed(RESULT_TIMEOUT_S), maxlen=0)
        return [handle.result(RESULT_TIMEOUT_S)["echo"] for handle in handles]

    def stop(self) -> None:
        if hasattr(self, "_client"):
            self._client.close()
        if hasattr(self, "_daemon"):
            self._daemon.close()
