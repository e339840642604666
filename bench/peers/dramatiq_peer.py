"""Dramatiq, broker and results in Redis, two processes of eight threads (as it comes)."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from peers import job
from peers.interface import RESULT_TIMEOUT_S, WORKERS, Peer, module
from peers.servers import REDIS, REDIS_VERSION, redis

URL = os.environ.get("PEER_URL")
if URL:
    _broker = RedisBroker(url=URL)
    _broker.add_middleware(Results(backend=RedisBackend(url=URL), store_results=True))
    dramatiq.set_broker(_broker)

    @dramatiq.actor(max_retries=0)
    def echo(payload: str) -> str:
        """The job; its messages are JSON, so bytes travel as base64."""
        return job.run_text(payload)


class DramatiqPeer(Peer):
    """See the module. Messages are acknowledged after the work in both settings."""

    name = "Dramatiq"
    package = "dramatiq"
    server = REDIS_VERSION
    settings = REDIS

    def start(self) -> None:
        url = redis(self)
        command = module("dramatiq", "peers.dramatiq_peer", "--processes", str(WORKERS))
        self.work(*command, PEER_URL=url)
        self._broker = RedisBroker(url=url)
        self._broker.add_middleware(Results(backend=RedisBackend(url=url), store_results=True))
        dramatiq.set_broker(self._broker)
        self._echo = dramatiq.actor(_same, actor_name="echo", max_retries=0)

    def put(self, payloads: Sequence[bytes]) -> Any:
        messages = [self._echo.message(base64.b64encode(payload).decode()) for payload in payloads]
        return dramatiq.group(messages).run()

    def results(self, handles: Any) -> list[bytes]:
        return [
            base64.b64decode(text) for text in handles.get_results(block=True, timeout=int(RESULT_TIMEOUT_S * 1000))
        ]


def _same(payload: str) -> str:
    return payload
