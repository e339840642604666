"""The other end of the raw ZeroMQ echo: a Python ROUTER loop in a process of its own.

python -m empd.bench.echo ENDPOINT
"""

from __future__ import annotations

import sys

import zmq


def serve(endpoint: str) -> None:
    """Sends every message back until an empty one comes."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(endpoint)
        while True:
            identity, message = router.recv_multipart()
            router.send_multipart((identity, message))
            if not message:
                return


if __name__ == "__main__":
    serve(sys.argv[1])
