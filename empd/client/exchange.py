"""Moving bytes between a channel and a conversation, the same for every skin."""

from __future__ import annotations

import time

from empd.client.channel import Channel
from empd.client.conversation import Conversation
from empd.errors import NotRunning, ProtocolError


def exchange(channel: Channel, conversation: Conversation) -> bool:
    """Takes all that has come and sends all that is to go; returns whether anything changed.

    Afterwards the channel's descriptors, which are edge-triggered, are safe to wait on. What breaks the conversation
    is kept by it (`failed`), for whoever waits.
    """
    came = False
    now_ns = time.monotonic_ns()
    try:
        came = conversation.take_changes(channel.changes(), now_ns)
        if channel.refusal:
            conversation.fail(NotRunning(channel.refusal))
        while conversation.failed is None:
            received = channel.receive()
            for data in received:
                conversation.receive(data, now_ns)
            came = came or bool(received)
            outgoing = conversation.outgoing(now_ns)
            if not outgoing:
                break
            channel.send(outgoing)  # which may take in what has come, and its notice with it: so it is looked at again
    except ProtocolError:
        came = True
    except BaseException:  # it is raised again
        # An interrupt (Ctrl-C) between taking frames and passing them on: greeting anew repeats what is open.
        conversation.connected(now_ns)
        raise
    return came
