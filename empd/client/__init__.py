"""The conversation with a daemon, once without I/O, and its two skins: `Client` and `AsyncClient`."""

from __future__ import annotations

from empd.client.asynchronous import AsyncClient
from empd.client.asyncjobs import AsyncJobHandle, AsyncJobSet
from empd.client.blocking import Client
from empd.client.jobs import JobHandle, JobSet
from empd.client.options import SubmitOptions

__all__ = ["AsyncClient", "AsyncJobHandle", "AsyncJobSet", "Client", "JobHandle", "JobSet", "SubmitOptions"]
