"""An HTTP service that answers at once, or after a while, in a process of its own.

python -m empd.bench.upstream

Prints its port, and ends when its standard input does. `POST /now` and `POST /later` answer `{"ok": true}`, the latter
after 10 ms. What does not end by itself is in `held`.
"""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web

from empd.bench.held import Held

LATER_S = 0.01


async def now(request: web.Request) -> web.Response:
    """Reads the request, and answers."""
    await request.read()
    return web.json_response({"ok": True})


async def later(request: web.Request) -> web.Response:
    """The same, after LATER_S."""
    await asyncio.sleep(LATER_S)
    return await now(request)


async def serve() -> None:
    """Serves on loopback until standard input ends."""
    app = web.Application()
    app.add_routes([web.post("/now", now), web.post("/later", later), *Held().routes()])
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sys.stdout.write(f"{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve())
