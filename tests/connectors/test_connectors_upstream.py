"""Handles of submissions: what an attempt journals before it calls, and what its successor makes of it."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from test_connectors_seam import Port

from empd.connectors.context import Context, JobDetails, JobView
from empd.connectors.upstream import UpstreamHandle
from empd.job import format_id

JOB = 77


def attempt(epoch: int, checkpoint: bytes | None = None) -> Context:
    context = Context(Port(), JobView(JOB, epoch, 1, JobDetails(service="s"), b"\xc0"), 0)
    context.last_checkpoint = checkpoint
    return context


def said(context: Context) -> list[str]:
    return [entry[1] for entry in context.port.said if entry[0] == "log"]  # type: ignore[attr-defined]


@given(
    st.builds(
        UpstreamHandle,
        kind=st.text(),
        id=st.text(),
        submitted_epoch=st.integers(0, 2**63),
        submission=st.integers(1, 2**31),
        ended=st.booleans(),
        extra=st.dictionaries(st.text(), st.integers(0, 9) | st.text()),
    )
)
def test_a_handle_comes_back_as_it_was(handle: UpstreamHandle) -> None:
    assert UpstreamHandle.decode(handle.encode()) == handle


@given(st.binary())
def test_other_checkpoints_are_no_handles(data: bytes) -> None:
    assert UpstreamHandle.decode(data) is None
    assert UpstreamHandle.decode(b"empd-upstream\x01" + data) is None or data


def test_the_key_is_the_same_until_the_submission_has_ended() -> None:
    async def run() -> None:
        first = attempt(5)
        key = first.idempotency_key
        assert key == f"{'1f' * 16}-{format_id(JOB)}-1"
        assert await first.upstream.intend("openai", deduplicates=True) == key
        # Its worker died here: nobody knows whether the call arrived.
        second = attempt(6, first.last_checkpoint)
        assert second.upstream.handle is not None
        assert second.upstream.handle.id == ""
        assert await second.upstream.intend("openai", deduplicates=True) == key
        assert second.upstream.doubt == ""
        await second.upstream.submitted("resp_1", model="m")
        # And here: the third takes up what is known.
        third = attempt(7, second.last_checkpoint)
        handle = third.upstream.handle
        assert handle == UpstreamHandle("openai", "resp_1", 6, 1, False, {"model": "m"})
        assert third.idempotency_key == key
        await third.upstream.ended()
        fourth = attempt(8, third.last_checkpoint)
        assert fourth.idempotency_key == key[:-1] + "2"
        await fourth.upstream.intend("openai")
        assert (fourth.upstream.doubt, said(fourth)) == ("", [])

    asyncio.run(run())


def test_without_a_key_a_repeated_intent_is_a_doubt_that_is_said() -> None:
    async def run() -> None:
        first = attempt(5)
        await first.upstream.intend("printer")
        second = attempt(6, first.last_checkpoint)
        await second.upstream.intend("printer")
        assert "may have arrived" in second.upstream.doubt
        assert said(second) == [second.upstream.doubt]
        assert ("doubt", second.upstream.doubt) in second.port.said
        assert not [entry for entry in first.port.said if entry[0] == "doubt"]
        # An id of this side's choosing is known upstream: no doubt.
        third = attempt(7, first.last_checkpoint)
        await third.upstream.intend("comfyui", chosen_id="x")
        assert third.upstream.doubt == ""

    asyncio.run(run())


def test_the_intent_is_journaled_before_it_returns() -> None:
    order: list[Any] = []

    class Slow(Port):
        async def checkpoint(self, context: Any, data: bytes, doubt: str) -> None:
            order.append("asked")
            await asyncio.sleep(0)
            order.append("durable")

    async def run() -> None:
        context = Context(Slow(), JobView(JOB, 1, 1, JobDetails(service="s"), b"\xc0"), 0)
        await context.upstream.intend("x")
        order.append("returned")

    asyncio.run(run())
    assert order == ["asked", "durable", "returned"]
