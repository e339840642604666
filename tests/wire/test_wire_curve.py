"""Tcp endpoints: the whole daemon over loopback, with the right keys, wrong ones and none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from empd import AsyncClient, Client
from empd.errors import ConfigError, EmpdError, NotRunning, Refused
from empd.lifecycle import EXIT_OPERATOR
from empd.wire import curve, frames
from empd.wire.codec import encode
from tests.box import Box, wait_until


class Tcp(Box):
    """A daemon that its clients reach over tcp. `keys` holds the directories of keys."""

    keys: Path

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()[-3000:]
        try:
            with self.client(connect_timeout_s=1) as client:
                status = client.status()
        except EmpdError:
            return False
        return bool(status["workers"]) and not status["problems"] and (self.runtime_dir / "http").exists()

    def client(self, **options: object) -> Client:
        return Client(self.settings["endpoint"], **{"curve_dir": self.keys / "alice", **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tcp]:
    home = tmp_path_factory.mktemp("curve")
    curve.make_server_keys(home / "keys")
    for name in ("alice", "bob"):
        curve.make_client_keys(home / "keys", name, home / name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    box = Tcp(endpoint=f"tcp://127.0.0.1:{port}", curve_dir=str(home / "keys"))
    box.keys = home
    with box:
        yield box


def refused(daemon: Tcp, **options: object) -> str:
    """What a client is told that does not get in; within a moment."""
    begun_s = time.monotonic()
    with pytest.raises((NotRunning, ConfigError)) as told:
        daemon.client(**{"connect_timeout_s": 2, **options})
    assert time.monotonic() - begun_s < 30
    return str(told.value)


def test_the_right_key_gets_in(daemon: Tcp) -> None:
    for name in ("alice", "bob"):
        with daemon.client(curve_dir=daemon.keys / name) as client:
            assert client.submit("noop", {"x": 1}).result(60) is not None
            assert len(client.submit_many("noop", [{}] * 500).results(60)) == 500


def test_an_async_client_gets_in_too(daemon: Tcp) -> None:
    async def ask() -> int:
        async with AsyncClient(daemon.settings["endpoint"], curve_dir=daemon.keys / "alice") as client:
            jobs = await client.submit_many("noop", [{}] * 10)
            return len(await jobs.results(60))

    assert asyncio.run(ask()) == 10


def test_the_daemons_own_parts_come_with_its_own_key(daemon: Tcp) -> None:
    with daemon.client(curve_dir=daemon.keys / "keys") as client:
        assert client.status()["workers"]
    with daemon.client() as client:
        handle = client.submit("noop", {})
        handle.result(60)
        # The web process follows the broker's journal over the same endpoint.
        wait_until(lambda: client.status()["consumers"].get("history", 0) > 0, "the web process to be let in")
        # What only history knows is not told over tcp, and never asked of some other daemon's.
        with pytest.raises(Refused, match="GET /v1/jobs/ID"):
            client.job(handle.id)


def test_a_strangers_key_is_told_at_once(daemon: Tcp, tmp_path: Path) -> None:
    curve.make_client_keys(daemon.keys / "keys", "mallory", tmp_path / "mallory")
    (daemon.keys / "keys" / "clients" / "mallory.key").unlink()
    begun_s = time.monotonic()
    assert "does not take this client's CURVE key" in refused(
        daemon, curve_dir=tmp_path / "mallory", connect_timeout_s=60
    )
    assert time.monotonic() - begun_s < 30

    async def ask() -> None:
        async with AsyncClient(daemon.settings["endpoint"], curve_dir=tmp_path / "mallory"):
            raise AssertionError("a stranger was let in")

    with pytest.raises(NotRunning, match="CURVE key"):
        asyncio.run(ask())


def test_another_daemons_key_is_told(daemon: Tcp, tmp_path: Path) -> None:
    curve.make_server_keys(tmp_path / "other")
    curve.make_client_keys(tmp_path / "other", "alice", tmp_path / "alice")
    assert "is server.key in curve_dir its key?" in refused(daemon, curve_dir=tmp_path / "alice")


def test_no_key_is_told(daemon: Tcp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EMPD_CURVE_DIR", raising=False)
    assert "CURVE keys only" in refused(daemon, curve_dir=None)
    assert "client.key_secret: no such file" in refused(daemon, curve_dir=tmp_path)


def test_plain_zeromq_gets_no_answer(daemon: Tcp) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as bare:
        bare.setsockopt(zmq.LINGER, 0)
        bare.connect(daemon.settings["endpoint"])
        bare.send(encode(frames.ClientHello(frames.VERSION)))
        assert not bare.poll(700)


def test_a_key_that_is_taken_away_is_refused_at_the_next_connection(daemon: Tcp, tmp_path: Path) -> None:
    curve.make_client_keys(daemon.keys / "keys", "carol", tmp_path / "carol")
    with daemon.client(curve_dir=tmp_path / "carol") as client:
        assert client.status()["workers"]
    (daemon.keys / "keys" / "clients" / "carol.key").unlink()
    assert "does not take" in refused(daemon, curve_dir=tmp_path / "carol")


def test_files_of_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.key"):
        curve.make_client_keys(tmp_path / "keys", "a", tmp_path / "a")
    curve.make_server_keys(tmp_path / "keys")
    with pytest.raises(FileExistsError):
        curve.make_server_keys(tmp_path / "keys")
    curve.make_client_keys(tmp_path / "keys", "a", tmp_path / "a")
    with pytest.raises(FileExistsError):
        curve.make_client_keys(tmp_path / "keys", "a", tmp_path / "b")
    with pytest.raises(ConfigError, match="no name"):
        curve.make_client_keys(tmp_path / "keys", "../a", tmp_path / "b")
    for secret in (tmp_path / "keys" / "server.key_secret", tmp_path / "a" / "client.key_secret"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert "secret" not in (tmp_path / "keys" / "clients" / "a.key").read_text().split("curve")[1]


def test_a_daemon_without_its_keys_says_which(tmp_path: Path) -> None:
    with contextlib.closing(Box(endpoint="tcp://127.0.0.1:9", curve_dir=str(tmp_path))) as daemon:
        daemon.start(wait=False)
        assert daemon.process is not None
        assert daemon.process.wait(60) == EXIT_OPERATOR
        assert "server.key_secret: no such file" in daemon.log()
        assert "Traceback" not in daemon.log()
