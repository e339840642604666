"""NATS JetStream with nats-py: a work-queue stream, a pull consumer that two workers share, results by core NATS."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Sequence
from typing import Any

import nats
from nats.errors import TimeoutError as NothingYet
from nats.js.api import RetentionPolicy, StorageType, StreamConfig

from peers import job
from peers.interface import RESULT_TIMEOUT_S, WORKERS, Peer, module
from peers.servers import NATS_VERSION
from peers.servers import nats as server

FETCH = 256
PENDING_BYTES_MAX = 1 << 30


class NatsPeer(Peer):
    """See the module. This server's version cannot be told to sync each write."""

    name = "NATS JetStream"
    package = "nats-py"
    server = NATS_VERSION
    settings = {
        "fast": "stream in memory, asynchronous publishes",
        "durable": "stream in a file, synced by the server every two minutes; each publish acknowledged",
    }

    again_limit_s = 40.0  # the server gives a job again when it was not acknowledged for 30 s

    def start(self) -> None:
        url = server(self)
        self._loop = asyncio.new_event_loop()
        self._answers: dict[int, asyncio.Future[bytes]] = {}
        self._numbers = itertools.count(1)
        self._loop.run_until_complete(self._connect(url))
        self.work(*module("peers.nats_peer", url), count=WORKERS)

    async def _connect(self, url: str) -> None:
        self._connection = await nats.connect(url, pending_size=PENDING_BYTES_MAX)
        self._stream = self._connection.jetstream(publish_async_max_pending=4000)
        storage = StorageType.FILE if self.setting == "durable" else StorageType.MEMORY
        await self._stream.add_stream(
            StreamConfig("jobs", subjects=["jobs"], storage=storage, retention=RetentionPolicy.WORK_QUEUE)
        )
        await self._connection.subscribe("results.*", cb=self._answered, pending_bytes_limit=PENDING_BYTES_MAX)

    async def _answered(self, message: Any) -> None:
        future = self._answers.pop(int(message.subject.rpartition(".")[2]), None)
        if future is not None:
            future.set_result(message.data)

    def put(self, payloads: Sequence[bytes]) -> Any:
        return self._loop.run_until_complete(self._put(payloads))

    async def _put(self, payloads: Sequence[bytes]) -> list[asyncio.Future[bytes]]:
        futures = []
        accepted: list[Any] = []
        for payload in payloads:
            number = next(self._numbers)
            future = self._answers[number] = self._loop.create_future()
            futures.append(future)
            accepted.append(await self._stream.publish_async("jobs", payload, headers={"n": str(number)}))
        if self.setting == "durable":
            await asyncio.gather(*accepted)
        return futures

    def results(self, handles: Any) -> list[bytes]:
        found: list[bytes] = self._loop.run_until_complete(asyncio.wait_for(asyncio.gather(*handles), RESULT_TIMEOUT_S))
        return found

    def stop(self) -> None:
        if hasattr(self, "_connection"):
            self._loop.run_until_complete(self._connection.close())
            self._loop.close()


async def work(url: str) -> None:
    """A worker: fetch, answer, acknowledge, until it is ended."""
    connection = await nats.connect(url, pending_size=PENDING_BYTES_MAX)
    pull = await connection.jetstream().pull_subscribe("jobs", durable="workers")
    while True:
        try:
            messages = await pull.fetch(FETCH, timeout=5)
        except NothingYet:
            continue
        for message in messages:
            await connection.publish(f"results.{message.headers['n']}", job.run(message.data))
            await message.ack()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]))
