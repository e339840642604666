"""Asks the web process for jobs that ended so long ago that the broker has forgotten them."""

from __future__ import annotations

import zmq

from empd.errors import FailureClass, Refused
from empd.wire import codec
from empd.wire.frames import HistoryAnswer, HistoryAsk

HISTORY_TIMEOUT_S = 5.0
ASK_AGAIN_S = 1.0
"""A web process that is replaced takes the question along; its successor must be asked anew."""


def ask_history(endpoint: str, ids: list[int], timeout_s: float = HISTORY_TIMEOUT_S) -> HistoryAnswer:
    """What history holds of these jobs. Raises Refused (unavailable) when nobody answers, ProtocolError on bad bytes.

    A socket for each question: questions are rare, and the web process may have been restarted in between.
    """
    if not endpoint:
        reason = "this job ended long ago, and history is not told over tcp: GET /v1/jobs/ID of the daemon's HTTP API"
        raise Refused(FailureClass.UNAVAILABLE, reason)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(endpoint)
        if not _answers(socket, codec.encode(HistoryAsk(1, ids)), timeout_s):
            reason = f"history at {endpoint} does not answer; is the web process running (`empd status`)?"
            raise Refused(FailureClass.UNAVAILABLE, reason, retry_after_s=1.0)
        answer = codec.decode_history_frame(socket.recv())
    if not isinstance(answer, HistoryAnswer):
        raise Refused(FailureClass.BAD_RESPONSE, f"history at {endpoint} answered with {type(answer).__name__}")
    return answer


def _answers(socket: zmq.Socket[bytes], question: bytes, timeout_s: float) -> bool:
    """Sends the question, again and again while nothing comes."""
    left_s = timeout_s
    while left_s > 0:
        socket.send(question)
        if socket.poll(int(min(left_s, ASK_AGAIN_S) * 1000)):
            return True
        left_s -= ASK_AGAIN_S
    return False
