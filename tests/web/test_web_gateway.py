"""The broker's picture as the web process gives it out: young enough, asked for once, and seldom waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from empd.errors import NotRunning
from empd.web.gateway import STATUS_FRESH_S, STATUS_RENEWED_S, Gateway


class Asked(Gateway):
    """A gateway whose questions the test answers, at a time that the test sets."""

    def __init__(self) -> None:
        super().__init__("ipc:///nowhere")
        self.open: list[asyncio.Future[dict[str, Any]]] = []
        self.now_s = 1000.0
        loop = asyncio.get_running_loop()
        self._loop = SimpleNamespace(time=lambda: self.now_s, create_task=loop.create_task)  # type: ignore[assignment]

    def _open(self) -> Any:
        def request(make: object, timeout_s: float) -> Awaitable[dict[str, Any]]:
            self.open.append(asyncio.get_running_loop().create_future())
            return self.open[-1]

        return SimpleNamespace(request=request)

    async def asked(self) -> asyncio.Future[dict[str, Any]]:
        """The one question that is open."""
        await settled()
        [question] = self.open
        self.open.clear()
        return question

    async def known(self, picture: dict[str, Any]) -> None:
        """`picture` has just come."""
        waiting = asyncio.ensure_future(self.status())
        (await self.asked()).set_result(picture)
        assert await waiting == picture


async def settled() -> None:
    """All has run that can run now."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(story: Callable[[Asked], Awaitable[None]]) -> None:
    async def told() -> None:
        await story(Asked())

    asyncio.run(asyncio.wait_for(told(), 30))


def test_many_who_ask_at_once_share_one_question() -> None:
    async def story(gateway: Asked) -> None:
        first, second = asyncio.ensure_future(gateway.status()), asyncio.ensure_future(gateway.status())
        question = await gateway.asked()
        first.cancel()  # who goes does not take the answer from the others
        await settled()
        question.set_result({"boot": 1})
        assert await second == {"boot": 1}

    run(story)


def test_a_picture_is_renewed_before_it_is_too_old_and_nobody_waits() -> None:
    async def story(gateway: Asked) -> None:
        await gateway.known({"boot": 1})
        gateway.now_s += STATUS_RENEWED_S - 0.001
        assert await gateway.status() == {"boot": 1}
        await settled()
        assert not gateway.open, "young enough"
        gateway.now_s += 0.001
        assert [await gateway.status(), await gateway.status()] == [{"boot": 1}] * 2
        (await gateway.asked()).set_result({"boot": 2})
        await settled()
        gateway.now_s += STATUS_RENEWED_S - 0.001
        assert await gateway.status() == {"boot": 2}

    run(story)


def test_a_picture_that_is_too_old_is_not_given_out() -> None:
    async def story(gateway: Asked) -> None:
        await gateway.known({"boot": 1})
        gateway.now_s += STATUS_RENEWED_S
        await gateway.status()
        question = await gateway.asked()
        gateway.now_s += STATUS_FRESH_S - STATUS_RENEWED_S
        waiting = asyncio.ensure_future(gateway.status())
        await settled()
        assert not waiting.done(), "it waits for the answer that is on its way"
        assert not gateway.open
        question.set_exception(NotRunning("no"))
        with pytest.raises(NotRunning, match="no"):
            await waiting
        await gateway.known({"boot": 3})

    run(story)


def test_the_journals_head_is_asked_for_however_young_the_picture() -> None:
    async def story(gateway: Asked) -> None:
        await gateway.known({"journal": {"last_seq": 5}})
        waiting = asyncio.ensure_future(gateway.head_seq())
        (await gateway.asked()).set_result({"journal": {"last_seq": 6}})
        assert await waiting == 6

    run(story)
