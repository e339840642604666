"""Servers on loopback, on free ports, with their data in the peer's directory."""

from __future__ import annotations

from peers.interface import Peer, await_port, free_port

REDIS = {
    "fast": "Redis without persistence (save '', appendonly no)",
    "durable": "Redis with appendonly yes, appendfsync always",
}

REDIS_VERSION = ("redis-server", "--version")
BEANSTALKD_VERSION = ("beanstalkd", "-v")
NATS_VERSION = ("nats-server", "--version")


def redis(peer: Peer) -> str:
    """A Redis for the peer, as its setting says; the URL."""
    port = free_port()
    durable = "yes" if peer.setting == "durable" else "no"
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(peer.directory), "--save", ""]
    server = peer.spawn(*command, "--appendonly", durable, "--appendfsync", "always")
    peer.broker_pid = server.pid
    await_port(port)
    return f"redis://127.0.0.1:{port}/0"


def beanstalkd(peer: Peer) -> int:
    """A beanstalkd; with a binlog that is synced on every write in the durable setting. Its port."""
    port = free_port()
    command = ["beanstalkd", "-l", "127.0.0.1", "-p", str(port), "-z", str(peer.large_bytes + 1024)]
    if peer.setting == "durable":
        command += ["-b", str(peer.directory), "-f0", "-s", str(peer.large_bytes * 4)]
    server = peer.spawn(*command)
    peer.broker_pid = server.pid
    await_port(port)
    return port


def nats(peer: Peer) -> str:
    """A NATS server with JetStream; the URL."""
    port = free_port()
    config = peer.directory / "nats.conf"
    config.write_text(
        f"listen: 127.0.0.1:{port}\nmax_payload: {peer.large_bytes * 2}\nmax_pending: {peer.large_bytes * 8}\n"
        f'jetstream {{ store_dir: "{peer.directory / "jetstream"}" }}\n'
    )
    server = peer.spawn("nats-server", "-c", str(config))
    peer.broker_pid = server.pid
    await_port(port)
    return f"nats://127.0.0.1:{port}"
