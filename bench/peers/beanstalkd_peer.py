"""beanstalkd with greenstalk: jobs in one tube, results in another, two worker processes."""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from typing import Any

import greenstalk

from peers import job
from peers.interface import RESULT_TIMEOUT_S, WORKERS, Peer, module
from peers.servers import BEANSTALKD_VERSION, beanstalkd

_NUMBER = struct.Struct("<Q")


class BeanstalkdPeer(Peer):
    """See the module. The client has no batches: each put and reserve is a round trip."""

    name = "beanstalkd"
    package = "greenstalk"
    server = BEANSTALKD_VERSION
    settings = {"fast": "no binlog", "durable": "binlog, fsync on every write (-f0)"}

    def start(self) -> None:
        port = beanstalkd(self)
        self.work(*module("peers.beanstalkd_peer", str(port)), count=WORKERS)
        self._client = greenstalk.Client(("127.0.0.1", port), encoding=None, use="jobs", watch="results")
        self._next = 0
        self._answers: dict[int, bytes] = {}

    def put(self, payloads: Sequence[bytes]) -> Any:
        numbers = range(self._next, self._next + len(payloads))
        self._next += len(payloads)
        for number, payload in zip(numbers, payloads, strict=True):
            self._client.put(_NUMBER.pack(number) + payload)
        return numbers

    def results(self, handles: Any) -> list[bytes]:
        while not all(number in self._answers for number in (handles[0], handles[-1])) or len(self._answers) < len(
            handles
        ):
            taken = self._client.reserve(timeout=int(RESULT_TIMEOUT_S))
            self._client.delete(taken)
            self._answers[_NUMBER.unpack_from(taken.body)[0]] = taken.body[_NUMBER.size :]
        return [self._answers.pop(number) for number in handles]

    def stop(self) -> None:
        if hasattr(self, "_client"):
            self._client.close()


def work(port: int) -> None:
    """A worker, until it is ended."""
    with greenstalk.Client(("127.0.0.1", port), encoding=None, use="results", watch="jobs") as client:
        while True:
            taken = client.reserve()
            client.put(job.run(taken.body, at=_NUMBER.size))
            client.delete(taken)


if __name__ == "__main__":
    work(int(sys.argv[1]))
