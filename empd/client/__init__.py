"""The conversation with a daemon, once without I/O, and its two skins: `Client` and `AsyncClient`."""

from __future__ import annotations

from empd.client.blocking import Client
from empd.client.jobs import JobHandle, JobSet

__all__ = ["Client", "JobHandle", "JobSet"]
