"""The peers, in the order of the report; a peer's module is imported when it is measured."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

from peers.interface import Peer


def _kind(module: str, name: str) -> type[Peer]:
    found: type[Peer] = getattr(importlib.import_module(f"peers.{module}"), name)
    return found


PEERS: dict[str, Callable[[], type[Peer]]] = {
    "empd": partial(_kind, "empd_peer", "EmpdPeer"),
    "zeromq": partial(_kind, "zeromq_peer", "Brokerless"),
    "zeromq-proxy": partial(_kind, "zeromq_peer", "Proxy"),
    "zeromq-loop": partial(_kind, "zeromq_peer", "Router"),
    "ray": partial(_kind, "ray_peer", "RayPeer"),
    "beanstalkd": partial(_kind, "beanstalkd_peer", "BeanstalkdPeer"),
    "nats": partial(_kind, "nats_peer", "NatsPeer"),
    "huey": partial(_kind, "huey_peer", "HueyPeer"),
    "dramatiq": partial(_kind, "dramatiq_peer", "DramatiqPeer"),
    "taskiq": partial(_kind, "taskiq_peer", "TaskiqPeer"),
    "celery": partial(_kind, "celery_peer", "CeleryPeer"),
    "rq": partial(_kind, "rq_peer", "RqPeer"),
}
