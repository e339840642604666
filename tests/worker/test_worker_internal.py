"""What a worker does between two generations of a server, where nothing else would put it right."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from empd.asset import AssetConfig
from empd.connectors.base import Service, Site
from empd.memory.arena import Arena
from empd.worker.assets import Storage
from empd.worker.hosted import Plan
from empd.worker.internal import Internal
from empd.worker.log import Log
from empd.worker.port import Port


class View:
    """A server's view whose first look fails."""

    def __init__(self) -> None:
        self.lease = None
        self.reason = ""
        self.looks = 0
        self.third = asyncio.Event()

    def look(self, jobs: int) -> None:
        self.looks += 1
        if self.looks == 1:
            raise RuntimeError("a descriptor that is another's")
        if self.looks == 3:
            self.third.set()


class Slow(Service):
    """Takes its time to close."""

    def __init__(self, site: Site) -> None:
        super().__init__(self.Config(), site)
        self.closing = asyncio.Event()
        self.may_close = asyncio.Event()

    async def close(self) -> None:
        self.closing.set()
        await self.may_close.wait()


def hosted_in(directory: Path, view: View) -> Any:
    site, log, unused = Site(service="s"), Log("critical"), None
    port = Port(unused, unused, Arena(directory, directory), unused, Storage("s", AssetConfig(), directory, 0, log))  # type: ignore[arg-type]
    hosted: Any = Internal("s", Plan("", "", {}, (), (), 1), site, port, log)
    hosted._view, hosted._wake = view, asyncio.Event()
    hosted._opened = hosted._inner = None
    return hosted


def test_a_look_that_fails_is_not_the_last(tmp_path: Path) -> None:
    async def run() -> None:
        view = View()
        hosted = hosted_in(tmp_path, view)
        following = asyncio.create_task(hosted._follow(Slow(hosted.site)))
        async with asyncio.timeout(30):
            await view.third.wait()
        following.cancel()

    asyncio.run(run())


def test_no_job_is_taken_while_a_connector_is_closed_for_the_next_server(tmp_path: Path) -> None:
    """The view has the next server already, and the connector was well with the last one."""

    async def run() -> None:
        hosted = hosted_in(tmp_path, View())
        connector = Slow(hosted.site)
        assert await connector.start()
        hosted._reason = ""
        assert hosted.reason == ""
        opening = asyncio.create_task(hosted._open_for(None, connector))
        await connector.closing.wait()
        assert hosted.reason == "starting"
        connector.may_close.set()
        await opening

    asyncio.run(run())
