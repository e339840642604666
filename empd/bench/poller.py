"""Asks for a page at a steady rate, in a process of its own, and says how long each answer took.

python -m empd.bench.poller HOST:PORT PATH REQUESTS_PER_S

Prints a line when the first answer is there. Ends when its standard input does, and then prints a JSON list: ms from
when each request was due to the end of its answer.
"""

from __future__ import annotations

import http.client
import json
import select
import sys
import time


def poll(address: str, path: str, rate: float) -> list[float]:
    """Asks until standard input ends. Raises RuntimeError for an answer that is not 200."""
    times_ms: list[float] = []
    connection = http.client.HTTPConnection(address, timeout=30)
    due_s = time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, due_s - time.monotonic()))[0]:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path} answers {answer.status}")
        times_ms.append((time.monotonic() - due_s) * 1e3)
        due_s += 1 / rate
        if len(times_ms) == 1:
            sys.stdout.write("asking\n")
            sys.stdout.flush()
    return times_ms


if __name__ == "__main__":
    sys.stdout.write(json.dumps(poll(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
