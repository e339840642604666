"""Frames to bytes and back. Nothing here trusts its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from empd.errors import ProtocolError
from empd.payload import FRAME_BYTES_MAX
from empd.wire import frames, telemetry

encode: Callable[[frames.Frame], bytes] = msgspec.msgpack.Encoder().encode
"""Any frame as bytes."""


_FROM_BROKER_BYTES_MAX = 2 * FRAME_BYTES_MAX
"""A `Rows` frame carries rows as they were journaled: one of a full frame's size, and what belongs around it."""


def _decoder(kind: Any, bytes_max: int = FRAME_BYTES_MAX) -> Callable[[bytes], Any]:
    decode = msgspec.msgpack.Decoder(kind).decode

    def checked(data: bytes) -> Any:
        if len(data) > bytes_max:
            raise ProtocolError(f"a frame has at most {bytes_max} bytes, this one has {len(data)}")
        try:
            return decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise ProtocolError(f"not a frame of protocol {frames.VERSION}: {error}") from None

    return checked


decode_client_frame: Callable[[bytes], frames.ClientFrame] = _decoder(frames.ClientFrame)
decode_worker_frame: Callable[[bytes], frames.WorkerFrame] = _decoder(frames.WorkerFrame)
decode_for_client: Callable[[bytes], frames.BrokerToClient] = _decoder(frames.BrokerToClient, _FROM_BROKER_BYTES_MAX)
decode_for_worker: Callable[[bytes], frames.BrokerToWorker] = _decoder(frames.BrokerToWorker)
decode_history_frame: Callable[[bytes], frames.HistoryFrame] = _decoder(frames.HistoryFrame)
decode_telemetry: Callable[[bytes], telemetry.Telemetry] = _decoder(telemetry.Telemetry)
decode_options: Callable[[bytes], frames.JobOptions] = _decoder(frames.JobOptions)
"""Each raises ProtocolError with what was wrong."""
