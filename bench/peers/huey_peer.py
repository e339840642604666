"""Huey on Redis, two worker processes, results told and not looked for (notify_result)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from huey import RedisHuey

from peers import job
from peers.interface import RESULT_TIMEOUT_S, WORKERS, Peer, module
from peers.servers import REDIS, REDIS_VERSION, redis


def echo(payload: bytes) -> bytes:
    """The job."""
    return job.run(payload)


def make(url: str) -> tuple[RedisHuey, Any]:
    """The queue and the task, alike in worker and client."""
    made = RedisHuey("peers", url=url, notify_result=True)
    return made, made.task(name="echo")(echo)


if "PEER_URL" in os.environ:
    huey, _ = make(os.environ["PEER_URL"])


class HueyPeer(Peer):
    """See the module. A job whose worker dies is gone in both settings."""

    name = "Huey"
    package = "huey"
    server = REDIS_VERSION
    settings = REDIS

    def start(self) -> None:
        url = redis(self)
        command = module("huey.bin.huey_consumer", "peers.huey_peer.huey", "-w", str(WORKERS), "-k", "process", "-q")
        self.work(*command, PEER_URL=url)
        _, self._task = make(url)

    def put(self, payloads: Sequence[bytes]) -> Any:
        return [self._task(payload) for payload in payloads]

    def results(self, handles: Any) -> list[bytes]:
        return [handle.get(blocking=True, timeout=RESULT_TIMEOUT_S) for handle in handles]
