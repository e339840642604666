"""Whether the content delivery network shows an asset yet."""

from __future__ import annotations

import asyncio

import aiohttp

from empd.asset import AssetFailed
from empd.errors import FailureClass

TRY_TIMEOUT_S = 5.0
BACKOFF_FACTOR = 1.25
BACKOFF_MAX = 5.0
"""The wait between two tries grows to this many times the first."""


class Cdn:
    """Questions to the network, over connections that stay open."""

    def __init__(self, attempts: int, interval_s: float) -> None:
        self._attempts = attempts
        self._interval_s = interval_s
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TRY_TIMEOUT_S))

    async def close(self) -> None:
        """Closes the connections."""
        await self._session.close()

    async def wait_until_shown(self, url: str, size_bytes: int) -> None:
        """Asks with HEAD until the answer is 200 in the right size. Raises AssetFailed when it never is.

        Called only once the asset is whole in the store: a network keeps the 404 of a question asked too early.
        """
        seen = ""
        for attempt in range(self._attempts):
            if attempt:
                await asyncio.sleep(self._interval_s * min(BACKOFF_FACTOR ** (attempt - 1), BACKOFF_MAX))
            seen = await self._look(url, size_bytes)
            if not seen:
                return
        reason = f"the CDN did not show {url} in {self._attempts} attempts: {seen}"
        raise AssetFailed(FailureClass.UNAVAILABLE, reason, upstream=True)

    async def _look(self, url: str, size_bytes: int) -> str:
        """What is wrong; empty when nothing is."""
        # As it is: a compressed answer has another length.
        headers = {"Accept-Encoding": "identity"}
        try:
            async with self._session.head(url, headers=headers, allow_redirects=True) as answer:
                if answer.status != 200:
                    return f"status {answer.status}"
                length = answer.headers.get("Content-Length")
                return "" if length in (None, str(size_bytes)) else f"{length} bytes instead of {size_bytes}"
        except TimeoutError:
            return f"no answer in {TRY_TIMEOUT_S:g} s"
        except aiohttp.ClientError as error:
            return str(error) or type(error).__name__
