"""`empd simulate`: services that only pretend, to try connectors and mappings on."""

from __future__ import annotations

import asyncio
import importlib
import signal
from typing import Any

import click
import msgspec

from empd.cli.codes import ExitCode
from empd.connectors.simulator.wishes import Simulated

SERVERS = {
    "http": "empd.connectors.simulator.http:SimulatedHTTP",
    "ws": "empd.connectors.simulator.websocket:SimulatedWebSocket",
}
"""By option: a class with `start(port) → url` and `close`, made from `Simulated`."""


@click.command()
@click.option("--http", "http_port", type=click.IntRange(0, 65535), help="Serve HTTP on this port (0: any free one).")
@click.option("--ws", "ws_port", type=click.IntRange(0, 65535), help="Serve WebSocket on this port (0: any free one).")
@click.option(
    "--duration-s", type=click.FloatRange(0, 3600), default=5.0, show_default=True, help="How long work takes."
)
@click.option("--steps", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Steps that it reports.")
@click.option("--jitter", type=click.FloatRange(0, 1), default=0.0, help="Spreads the duration by ± this part of it.")
@click.option("--failure-rate", type=click.FloatRange(0, 1), default=0.0, help="How much of the work fails.")
@click.option("--health-failure-rate", type=click.FloatRange(0, 1), default=0.0, help="How often health is bad.")
@click.option("--api-key", default="", help="What callers must show (X-API-Key, or a Bearer token).")
def simulate(http_port: int | None, ws_port: int | None, **behaviour: Any) -> int:
    """Serve simulated services on loopback, until Ctrl-C.

    Any request may wish for faults (a status with Retry-After, a cut, an error in a 200 answer, a lost job, a slow
    answer): in its JSON body under `faults`, or in the header X-Faults. GET /_/counts shows what was asked and done.
    """
    ports = {"http": http_port, "ws": ws_port}
    if all(port is None for port in ports.values()):
        raise click.UsageError("nothing to serve: give --http PORT or --ws PORT")
    asyncio.run(_serve({name: port for name, port in ports.items() if port is not None}, behaviour))
    return ExitCode.OK


async def _serve(ports: dict[str, int], behaviour: dict[str, Any]) -> None:
    simulated = msgspec.convert(behaviour, Simulated)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    servers = []
    try:
        for name, port in ports.items():
            module, _, attribute = SERVERS[name].partition(":")
            server = getattr(importlib.import_module(module), attribute)(simulated)
            servers.append(server)
            print(f"simulating at {await server.start(port)}", flush=True)
        await stop.wait()
    finally:
        for server in servers:
            await server.close()
