"""taskiq with Redis: a list as queue, or a stream with acknowledgements; two worker processes."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Sequence
from typing import Any

from taskiq import AsyncBroker
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

from peers import job
from peers.interface import RESULT_TIMEOUT_S, WORKERS, Peer, module
from peers.servers import REDIS, REDIS_VERSION, redis

CHECK_S = 0.002
"""Clients of taskiq look for a result again and again; 0.2 s, as it comes, would be all of the latency."""


async def echo(payload: str) -> str:
    """The job; its messages are JSON, so bytes travel as base64."""
    return job.run_text(payload)


def make(url: str, setting: str) -> tuple[AsyncBroker, Any]:
    """The broker and the task, alike in worker and client."""
    kind = RedisStreamBroker if setting == "durable" else ListQueueBroker
    made = kind(url).with_result_backend(RedisAsyncResultBackend(url, result_ex_time=600))
    return made, made.register_task(echo, task_name="echo")


if "PEER_URL" in os.environ:
    broker, _ = make(os.environ["PEER_URL"], os.environ["PEER_SETTING"])


class TaskiqPeer(Peer):
    """See the module."""

    name = "taskiq"
    package = "taskiq"
    server = REDIS_VERSION
    settings = {
        "fast": f"ListQueueBroker; {REDIS['fast']}",
        "durable": f"RedisStreamBroker (acknowledged after the work); {REDIS['durable']}",
    }

    def start(self) -> None:
        url = redis(self)
        command = module("taskiq", "worker", "peers.taskiq_peer:broker", "--workers", str(WORKERS))
        self.work(*command, PEER_URL=url, PEER_SETTING=self.setting)
        self._loop = asyncio.new_event_loop()
        self._broker, self._task = make(url, self.setting)
        self._loop.run_until_complete(self._broker.startup())

    def put(self, payloads: Sequence[bytes]) -> Any:
        async def kick() -> list[Any]:
            return [await self._task.kiq(base64.b64encode(payload).decode()) for payload in payloads]

        return self._loop.run_until_complete(kick())

    def results(self, handles: Any) -> list[bytes]:
        async def wait() -> list[bytes]:
            found = [await handle.wait_result(check_interval=CHECK_S, timeout=RESULT_TIMEOUT_S) for handle in handles]
            return [base64.b64decode(result.return_value) for result in found]

        return self._loop.run_until_complete(wait())

    def stop(self) -> None:
        if hasattr(self, "_broker"):
            self._loop.run_until_complete(self._broker.shutdown())
            self._loop.close()
