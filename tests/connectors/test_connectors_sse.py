"""The parser of event streams: whatever the line ends, and wherever the bytes were cut."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from empd.connectors.failures import BadResponse
from empd.connectors.protocol.sse import Event, EventParser

LINE = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=("Cs",)), max_size=12)
EVENTS = st.lists(
    st.builds(
        lambda lines, kind, number: ("\n".join(lines), kind, number),
        st.lists(LINE, min_size=1, max_size=3),
        st.sampled_from(["", "message", "delta"]),
        st.none() | st.integers(0, 99),
    ),
    max_size=6,
)
ENDS = st.sampled_from(["\n", "\r", "\r\n"])


@st.composite
def streams(draw: Any) -> tuple[list[Event], bytes]:
    """Events, and a stream of them: any line ends (mixed), comments, one space after the colon or none, a BOM."""
    text, last_id, expected = draw(st.sampled_from(["", "\ufeff"])), "", []
    for data, kind, number in draw(EVENTS):
        lines = [f"data: {line}" for line in data.split("\n")]
        lines += [f"event:{kind}"] * bool(kind) + [": a comment", "unknown: field", "retry: 250"][
            : draw(st.integers(0, 3))
        ]
        if number is not None:
            lines.append(f"id: {number}")
            last_id = str(number)
        for line in [*lines, ""]:
            end = draw(ENDS)
            # A CR, and an empty line that ends in LF, would read as one CRLF.
            text += line + ("\r" if end == "\n" and line == "" and text.endswith("\r") else end)
        expected.append(Event(data, kind or "message", last_id))
    return expected, text.encode()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[begin:end] for begin, end in itertools.pairwise(bounds)]


@given(streams(), st.lists(st.integers(0, 10_000), max_size=20))
def test_events_are_the_same_wherever_the_stream_was_cut(stream: tuple[list[Event], bytes], places: list[int]) -> None:
    expected, data = stream
    parser = EventParser()
    assert [event for piece in cut(data, places) for event in parser.feed(piece)] == expected
    assert parser.last_id == (expected[-1].id if expected else "")
    one_by_one = EventParser()
    assert [event for byte in data for event in one_by_one.feed(bytes([byte]))] == expected


@given(st.binary(max_size=200), st.lists(st.integers(0, 10_000), max_size=10))
def test_any_bytes_give_the_same_events_in_one_piece_and_in_many(data: bytes, places: list[int]) -> None:
    whole, pieces = EventParser(), EventParser()
    assert whole.feed(data) == [event for piece in cut(data, places) for event in pieces.feed(piece)]
    assert (whole.last_id, whole.retry_s) == (pieces.last_id, pieces.retry_s)


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("data: YHOO\ndata: +2\ndata: 10\n\n", [Event("YHOO\n+2\n10")]),
        (": test stream\n\ndata: first\nid: 1\n\ndata:second\nid\n\ndata:  third\n\n", [
            Event("first", id="1"), Event("second"), Event(" third"),
        ]),
        ("data\n\ndata\ndata\n\ndata:", [Event(""), Event("\n")]),
        ("data:test\n\ndata: test\n\n", [Event("test"), Event("test")]),
        ("event: a\n\ndata: x\n\n", [Event("x")]),
        ("id: 5\n\ndata: x\nid: 6\0\n\n", [Event("x", id="5")]),
        ("data: unended\n", []),
    ],
)  # fmt: skip
def test_the_examples_of_the_standard(text: str, events: list[Event]) -> None:
    assert EventParser().feed(text.encode()) == events


def test_retry_is_milliseconds_and_only_digits() -> None:
    parser = EventParser()
    parser.feed(b"retry: 1500\n\nretry: soon\n\nretry: -1\n\n")
    assert parser.retry_s == 1.5


@pytest.mark.parametrize("data", [b"data: " + b"x" * 200, b"data: xxxxxxxxxx\n" * 20])
def test_an_endless_event_is_refused(data: bytes) -> None:
    with pytest.raises(BadResponse, match="longer than 100 bytes"):
        EventParser(bytes_max=100).feed(data)
