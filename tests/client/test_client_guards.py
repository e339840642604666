"""What a client asks for and does not believe: each guard by itself, so that taking it out shows."""

from __future__ import annotations

import msgspec
import pytest
from client_model import ModelBroker
from test_client_conversation import Link

from empd.errors import ProtocolError
from empd.wire import codec, frames


def connected_link() -> Link:
    link = Link(ModelBroker(work=lambda number, payload: None))
    link.settle()
    return link


def test_who_is_told_to_resync_asks_for_what_it_missed() -> None:
    link = connected_link()
    handle = link.submit(b"job")
    link.settle()
    assert link.broker.finish(1)  # its result goes to nobody
    link.settle()
    assert not handle.ended
    link.down.append(codec.encode(frames.Resync()))
    link.settle()
    assert handle.ended


def test_a_daemon_that_has_frames_which_were_never_sent_is_not_believed() -> None:
    link = connected_link()
    welcome = link.conversation.welcome
    assert welcome is not None
    link.conversation.disconnected()
    link.conversation.connected(1)
    ahead = msgspec.structs.replace(welcome, frame_number=1)
    with pytest.raises(ProtocolError, match="1 is next"):
        link.conversation.receive(codec.encode(ahead), 2)
