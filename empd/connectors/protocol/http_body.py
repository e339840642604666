"""Bodies that have a bound."""

from __future__ import annotations

from empd.connectors.failures import BadResponse
from empd.connectors.protocol.http_short import Response


class TooLarge(BadResponse):
    """The answer is larger than the bound."""


async def read_bounded(response: Response, bytes_max: int) -> bytes:
    """The whole body, unpacked. Raises TooLarge, and what aiohttp raises, with the connection closed."""
    length = response.content_length
    try:
        if length is not None and length <= bytes_max and "Content-Encoding" not in response.headers:
            return await response.read()
        found = bytearray()
        if length is None or length <= bytes_max:
            async for chunk in response.content.iter_any():
                found += chunk
                if len(found) > bytes_max:
                    break
            else:
                return bytes(found)
    finally:
        # After the last byte the connection is back in the pool already, and this does nothing.
        response.close()
    raise TooLarge(f"the answer is larger than response_bytes_max ({bytes_max})", retry=False)
