"""The event stream for several at once: who gives no name has a subscription of its own, and no cursor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from empd import AsyncClient
from empd.queue.rows import Kind
from empd.web.gateway import REPLAYS_MAX, Gateway
from empd.wire.frames import Rows
from tests.box import Box, wait_until


async def seqs(frames: AsyncIterator[object], head: int) -> list[int]:
    """The row numbers up to `head`, as a subscriber is told them."""
    told: list[int] = []
    async for frame in frames:
        if isinstance(frame, Rows):
            told += [row[0] for row in frame.rows]
        if told and told[-1] >= head:
            break
    return [seq for seq in told if seq <= head]


def test_unnamed_subscribers_do_not_disturb_each_other(box: Callable[..., Box]) -> None:
    daemon = box()
    endpoint = f"ipc://{daemon.runtime_dir}/empd.sock"
    with daemon.client() as client:
        client.submit_many("noop", [{}] * 3_000).results(60)
        before = set(client.status()["consumers"])

    async def follow_all() -> list[list[int]]:
        gateway = Gateway(endpoint)
        head = await gateway.head_seq()

        async def replayed() -> list[int]:
            async with aclosing(gateway.replay(1)) as frames:
                return await seqs(frames, head)

        async def subscribed() -> list[int]:
            async with AsyncClient(endpoint) as client, aclosing(client.subscribe("", 1)) as frames:  # type: ignore[type-var]
                return await seqs(frames, head)

        try:
            told = await asyncio.gather(*(replayed() for _ in range(REPLAYS_MAX)), *(subscribed() for _ in range(3)))
            assert all(each == list(range(1, head + 1)) for each in told)
            return list(told)
        finally:
            gateway.close()

    told = asyncio.run(follow_all())
    assert len(told) == REPLAYS_MAX + 3
    with daemon.client() as client:
        assert set(client.status()["consumers"]) == before  # none of them holds the journal back


def test_a_named_consumer_sees_what_it_asked_for_and_is_remembered(box: Callable[..., Box]) -> None:
    daemon = box()
    with daemon.client() as client:
        client.submit_many("noop", [{}] * 500).results(60)
        kinds: set[int] = set()
        for frame in client.subscribe("mine", 1, [Kind.RESULTS]):
            assert isinstance(frame, Rows)
            kinds |= {row[2] for row in frame.rows}
            break
        assert kinds == {Kind.RESULTS}
        wait_until(lambda: "mine" in client.status()["consumers"], "the consumer's cursor")
