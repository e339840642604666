"""What the journal says of jobs, read as a consumer of events reads it."""

from __future__ import annotations

from collections import Counter

from empd import Client
from empd.job import Outcome
from empd.queue.rows import Kind, decode_body
from empd.wire.frames import Reset


def completions(client: Client) -> Counter[int]:
    """Job → how often it ended other than as a dead letter, up to now."""
    last_seq = client.status()["journal"]["last_seq"]
    ended: Counter[int] = Counter()
    for frame in client.subscribe("", 1):
        assert not isinstance(frame, Reset), "the journal of a short test is not trimmed"
        for _, _, kind, _, body in frame.rows:
            if kind == Kind.RESULTS:
                for group in decode_body(kind, body).groups:
                    ended.update(job.id for job in group.jobs if job.outcome != Outcome.DEAD)
        if frame.rows and frame.rows[-1][0] >= last_seq:
            return ended
    raise AssertionError("the stream ended")
