"""Nothing that a peer sends makes a decoder do anything but decode or raise ProtocolError."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empd import job
from empd.errors import ProtocolError
from empd.payload import FRAME_BYTES_MAX
from empd.record import Record
from empd.wire import codec, telemetry

VECTORS = [
    (vector["sent_by"], bytes.fromhex(vector["hex"]))
    for vector in json.loads((Path(codec.__file__).parent / "vectors.json").read_text("utf-8"))
]
DECODERS: dict[str, Callable[[bytes], Any]] = {
    "client": codec.decode_client_frame,
    "to client": codec.decode_for_client,
    "worker": codec.decode_worker_frame,
    "to worker": codec.decode_for_worker,
    "history": codec.decode_history_frame,
    "telemetry": codec.decode_telemetry,
    "options": codec.decode_options,
}


def outcome(decode: Callable[[bytes], Any], data: bytes) -> Any:
    """The frame, or the error; anything else that is raised fails the test."""
    try:
        frame = decode(data)
    except ProtocolError as error:
        assert str(error)
        return error
    assert isinstance(frame, Record | telemetry.Telemetry)
    return frame


@given(st.sampled_from(sorted(DECODERS)), st.binary(max_size=300))
@settings(max_examples=800, deadline=None)
def test_any_bytes(name: str, data: bytes) -> None:
    outcome(DECODERS[name], data)


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


@given(st.sampled_from(sorted(DECODERS)), st.integers(0, 130), st.lists(VALUES, max_size=12))
@settings(max_examples=800, deadline=None)
def test_any_array_with_a_tag(name: str, tag: int, values: list[Any]) -> None:
    outcome(DECODERS[name], msgspec.msgpack.encode([tag, *values]))


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A vector with bytes changed, cut, doubled or filled in."""
    sent_by, data = draw(st.sampled_from(VECTORS))
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(changed) - 1, 0)))
        match draw(st.sampled_from(("flip", "set", "cut", "insert", "repeat"))):
            case "flip" if changed:
                changed[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if changed:
                changed[at] = draw(st.sampled_from((0, 0x90, 0xC0, 0xC1, 0xC6, 0xDD, 0xDF, 0xFF)))
            case "cut":
                del changed[at:]
            case "insert":
                changed[at:at] = draw(st.binary(max_size=8))
            case _:
                changed[at:at] = changed[at : at + 16]
    return sent_by, bytes(changed)


@given(mutated())
@settings(max_examples=2_000, deadline=None)
def test_mutated_vectors(case: tuple[str, bytes]) -> None:
    sent_by, data = case
    frame = outcome(DECODERS[sent_by], data)
    if not isinstance(frame, ProtocolError):
        again = DECODERS[sent_by](codec.encode(frame))
        assert codec.encode(again) == codec.encode(frame)


@pytest.mark.parametrize("name", sorted(DECODERS))
@pytest.mark.parametrize(
    "announced",
    [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"],
    ids=["array", "map", "bin", "str"],
)
def test_an_announced_size_is_not_believed(name: str, announced: bytes) -> None:
    """A few bytes that announce four billion elements cost no memory, at the top and within each field."""
    tracemalloc.start()
    try:
        outcome(DECODERS[name], announced)
        for sent_by, data in VECTORS:
            if sent_by == name:
                for at in range(len(data)):
                    outcome(DECODERS[name], data[:at] + announced)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_a_full_frame_of_the_smallest_things_has_bounded_cost() -> None:
    """One frame of a mebibyte of empty lists: what it decodes to stays within a small multiple of it."""
    group = b"\x92\x91\xa1s\x90"  # options ["s"], no payloads
    count = (FRAME_BYTES_MAX - 16) // len(group)
    data = b"\x94\x02\x01\x01\xdd" + count.to_bytes(4, "big") + group * count
    assert len(data) <= FRAME_BYTES_MAX
    tracemalloc.start()
    try:
        frame = codec.decode_client_frame(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(frame, job.Submit)
    assert len(frame.groups) == count
    assert peak < 100 * FRAME_BYTES_MAX
