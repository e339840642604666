"""When a server's port is taken, and for how long its keeper waits for it."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from internal_box import free_ports

from empd.lifecycle import ChildKind, Control, Notice, send
from empd.server import process
from empd.server.launch import is_taken
from empd.server.process import Keeper

HOST = "127.0.0.1"


def listening(port: int) -> socket.socket:
    return socket.create_server((HOST, port))


def near_end(port: int) -> socket.socket:
    """A connection to somewhere that has the port at this side, as the kernel gives one to whoever connects."""
    connection = socket.socket()
    connection.bind((HOST, port))
    return connection


@pytest.mark.parametrize("hold", [listening, near_end])
def test_a_port_is_taken_by_who_listens_there_and_by_who_only_connects_from_there(hold: Any) -> None:
    port = free_ports(1)
    assert not is_taken(port)
    with hold(port):
        assert is_taken(port)
    assert not is_taken(port)


def test_what_a_dead_server_left_behind_does_not_take_its_port() -> None:
    port = free_ports(1)
    with listening(port) as server, socket.create_connection((HOST, port)) as client:
        served, _ = server.accept()
        served.close()  # first, as a process that dies: the kernel keeps this end for a minute
        assert client.recv(1) == b""
    assert not is_taken(port)


class Waiting:
    """A keeper whose port is not free yet."""

    def __init__(self, port: int) -> None:
        self.supervisor, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.setblocking(False)
        self.keeper = Keeper.__new__(Keeper)
        parts: Any = self.keeper
        parts._loop = asyncio.get_running_loop()
        parts._child = SimpleNamespace(control=control)
        parts._instance = SimpleNamespace(port=port)
        self.looks = asyncio.Event()
        parts._write = self.looks.set
        self.free = asyncio.create_task(parts._port_is_free())


def test_a_keeper_waits_for_a_port_that_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PORT_S_MAX", 60.0)

    async def run() -> None:
        with near_end(port := free_ports(1)):
            waiting = Waiting(port)
            send(waiting.supervisor, Control(Notice.PICTURE_END, ChildKind.SERVER, 0))
            await waiting.looks.wait()
            assert not waiting.free.done()
        async with asyncio.timeout(30):
            assert await waiting.free

    asyncio.run(run())


@pytest.mark.parametrize("notice", [Notice.STOP, Notice.DRAIN, None])
def test_a_keeper_does_not_wait_where_no_server_is_wanted_nor_for_ever(
    monkeypatch: pytest.MonkeyPatch, notice: Notice | None
) -> None:
    monkeypatch.setattr(process, "PORT_S_MAX", 0.0 if notice is None else 3600.0)

    async def run() -> None:
        with near_end(port := free_ports(1)):
            waiting = Waiting(port)
            if notice is not None:
                send(waiting.supervisor, Control(notice, ChildKind.SERVER, 0))
            async with asyncio.timeout(30):
                assert not await waiting.free

    asyncio.run(run())
