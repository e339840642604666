"""Celery, broker and result backend Redis, two prefork processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from celery import Celery

from peers import job
from peers.interface import RESULT_TIMEOUT_S, WORKERS, Peer, module
from peers.servers import REDIS, REDIS_VERSION, redis


def echo(payload: bytes) -> bytes:
    """The job."""
    return job.run(payload)


def make(url: str, setting: str) -> tuple[Celery, Any]:
    """The application and the task, alike in worker and client."""
    made = Celery("peers", broker=url, backend=url)
    durable = setting == "durable"
    made.conf.update(
        task_acks_late=durable,
        task_reject_on_worker_lost=durable,
        worker_prefetch_multiplier=1 if durable else 128,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
    )
    return made, made.task(name="echo")(echo)


if "PEER_URL" in os.environ:
    app, _ = make(os.environ["PEER_URL"], os.environ["PEER_SETTING"])


class CeleryPeer(Peer):
    """See the module."""

    name = "Celery"
    package = "celery"
    server = REDIS_VERSION
    settings = {
        "fast": f"prefetch 128, early acks; {REDIS['fast']}",
        "durable": f"task_acks_late, task_reject_on_worker_lost, prefetch 1; {REDIS['durable']}",
    }

    def start(self) -> None:
        url = redis(self)
        options = ["--concurrency", str(WORKERS), "--without-gossip", "--without-mingle", "--without-heartbeat"]
        command = module("celery", "-A", "peers.celery_peer", "worker", *options, "-l", "warning")
        self.work(*command, PEER_URL=url, PEER_SETTING=self.setting)
        self._app, self._task = make(url, self.setting)

    def put(self, payloads: Sequence[bytes]) -> Any:
        return [self._task.delay(payload) for payload in payloads]

    def results(self, handles: Any) -> list[bytes]:
        # One by one: a group would look for its results every half second.
        return [handle.get(timeout=RESULT_TIMEOUT_S) for handle in handles]

    def stop(self) -> None:
        if hasattr(self, "_app"):
            self._app.close()
