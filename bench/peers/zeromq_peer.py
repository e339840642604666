"""Raw ZeroMQ, which keeps nothing: without a broker (PUSH, PULL), through libzmq's proxy, through a Python ROUTER loop.

One message a job, as in every queue; what a broker costs at all is the difference between the three.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from typing import Any

import zmq

from peers import job
from peers.interface import RESULT_TIMEOUT_S, WORKERS, Peer, module

_NUMBER = struct.Struct("<Q")
WINDOW = 10_000
"""Jobs out and not answered: less than the sockets' marks, so that nothing blocks for ever."""


class Brokerless(Peer):
    """Client PUSHes to both workers, which PUSH back."""

    name = "ZeroMQ, brokerless"
    package = "pyzmq"
    settings = {"fast": "PUSH and PULL over ipc"}
    has_queue = False

    def start(self) -> None:
        self._context = zmq.Context()
        self._out, self._in = self._context.socket(zmq.PUSH), self._context.socket(zmq.PULL)
        for socket in (self._out, self._in):
            socket.set_hwm(2 * WINDOW)
        self._in.rcvtimeo = int(RESULT_TIMEOUT_S * 1000)
        self._connect()
        self._next = 0
        self._answers: dict[int, bytes] = {}

    def _connect(self) -> None:
        jobs, results = (f"ipc://{self.directory}/{name}" for name in ("jobs", "results"))
        self._out.bind(jobs)
        self._in.bind(results)
        self.work(*module("peers.zeromq_peer", "work", jobs, results), count=WORKERS)

    def put(self, payloads: Sequence[bytes]) -> Any:
        numbers = range(self._next, self._next + len(payloads))
        self._next += len(payloads)
        for number, payload in zip(numbers, payloads, strict=True):
            while number - numbers[0] - len(self._answers) >= WINDOW:
                self._take()
            self._out.send(_NUMBER.pack(number) + payload)
        return numbers

    def results(self, handles: Any) -> list[bytes]:
        while len(self._answers) < len(handles):
            self._take()
        return [self._answers.pop(number) for number in handles]

    def _take(self) -> None:
        message = self._in.recv()
        self._answers[_NUMBER.unpack_from(message)[0]] = message[_NUMBER.size :]

    def stop(self) -> None:
        self._context.destroy(linger=0)


class Proxy(Brokerless):
    """One libzmq proxy on each way, in a process of its own."""

    name = "ZeroMQ, libzmq proxy"
    settings = {"fast": "zmq.proxy, PULL to PUSH, over ipc"}
    broker = "proxy"

    def _connect(self) -> None:
        ends = [f"ipc://{self.directory}/{name}" for name in ("jobs", "work", "done", "results")]
        self.spawn(*module("peers.zeromq_peer", self.broker, *ends))
        self._out.connect(ends[0])
        self._in.connect(ends[3])
        self.work(*module("peers.zeromq_peer", "work", ends[1], ends[2], "connect"), count=WORKERS)


class Router(Proxy):
    """The least broker in Python: one loop that passes messages on, one at a time."""

    name = "ZeroMQ, Python loop"
    settings = {"fast": "a Python loop, recv and send, over ipc"}
    broker = "loop"


def work(source: str, target: str, *_: str) -> None:
    """A worker, until it is ended."""
    context = zmq.Context()
    pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    for socket, endpoint in ((pull, source), (push, target)):
        socket.set_hwm(2 * WINDOW)
        socket.connect(endpoint)
    while True:
        push.send(job.run(pull.recv(), at=_NUMBER.size))


def pass_on(kind: str, jobs: str, works: str, done: str, results: str) -> None:
    """The broker between four endpoints, which it binds."""
    context = zmq.Context()
    sockets = []
    for role, endpoint in ((zmq.PULL, jobs), (zmq.PUSH, works), (zmq.PULL, done), (zmq.PUSH, results)):
        socket = context.socket(role)
        socket.set_hwm(2 * WINDOW)
        socket.bind(endpoint)
        sockets.append(socket)
    if kind == "proxy":
        import threading

        threading.Thread(target=zmq.proxy, args=sockets[:2], daemon=True).start()
        zmq.proxy(*sockets[2:])
    ways = {sockets[0]: sockets[1], sockets[2]: sockets[3]}
    poller = zmq.Poller()
    for socket in ways:
        poller.register(socket, zmq.POLLIN)
    while True:
        for socket, _ in poller.poll():
            ways[socket].send(socket.recv())


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work(*sys.argv[2:])
    else:
        pass_on(*sys.argv[1:])
