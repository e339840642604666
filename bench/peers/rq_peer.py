"""RQ: two workers; in the fast setting without a fork for each job (SimpleWorker), else as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis import Redis
from rq import Queue, Retry

from peers import job
from peers.interface import RESULT_TIMEOUT_S, WORKERS, Peer, module
from peers.servers import REDIS, REDIS_VERSION, redis


def echo(payload: bytes) -> bytes:
    """The job."""
    return job.run(payload)


class RqPeer(Peer):
    """See the module."""

    name = "RQ"
    package = "rq"
    server = REDIS_VERSION
    settings = {
        "fast": f"SimpleWorker (no fork); {REDIS['fast']}",
        "durable": f"Worker (a fork for each job), Retry(max=3); {REDIS['durable']}",
    }

    def start(self) -> None:
        url = redis(self)
        kind = "rq.worker.Worker" if self.setting == "durable" else "rq.worker.SimpleWorker"
        command = module("rq.cli", "worker", "--url", url, "--worker-class", kind, "--quiet", "echo")
        self.work(*command, count=WORKERS)
        self._connection = Redis.from_url(url)
        self._queue = Queue("echo", connection=self._connection)

    def put(self, payloads: Sequence[bytes]) -> Any:
        options: dict[str, Any] = {"result_ttl": 600, "description": "echo"}
        if self.setting == "durable":
            options["retry"] = Retry(max=3)  # else a job whose worker was killed has failed
        jobs = [Queue.prepare_data(echo, (payload,), **options) for payload in payloads]
        return self._queue.enqueue_many(jobs)

    def results(self, handles: Any) -> list[bytes]:
        found = [job.latest_result(timeout=int(RESULT_TIMEOUT_S)) for job in handles]
        return [result.return_value for result in found]

    def stop(self) -> None:
        if hasattr(self, "_connection"):
            self._connection.close()
