"""The other end of the raw ZeroMQ echo: a Python ROUTER loop in a process of its own; or a broker before it.

python -m empd.bench.echo ENDPOINT [BACKEND]
"""

from __future__ import annotations

import sys

import zmq


def serve(endpoint: str) -> None:
    """Sends every message back until an empty one comes."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(endpoint)
        while True:
            message = router.recv_multipart()
            router.send_multipart(message)
            if not message[-1]:
                return


def forward(endpoint: str, backend: str) -> None:
    """The least broker: from clients to the one that serves at `backend`, and back. Passes the empty message on."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as front, context.socket(zmq.DEALER) as back:
        front.bind(endpoint)
        back.connect(backend)
        poller = zmq.Poller()
        poller.register(front, zmq.POLLIN)
        poller.register(back, zmq.POLLIN)
        while True:
            for socket, _ in poller.poll():
                message = socket.recv_multipart()
                (back if socket is front else front).send_multipart(message)
                if socket is back and not message[-1]:
                    return


if __name__ == "__main__":
    serve(*sys.argv[1:]) if len(sys.argv) == 2 else forward(*sys.argv[1:])
