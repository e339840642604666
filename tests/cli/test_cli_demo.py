"""The demo, whole; and the pieces it is made of."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empd.cli.demo import png, services
from empd.cli.demo.command import SHIPPED_PICTURES
from empd.cli.demo.daemon import Daemon
from empd.errors import EmpdError


def test_the_demo_loses_nothing(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    small = png.shrink(png.decode((SHIPPED_PICTURES / "sunset.png").read_bytes()), 150)
    (pictures / "one.png").write_bytes(png.encode(small))
    done = subprocess.run(
        [sys.executable, "-m", "empd", "demo", "--jobs", "500", "--pictures", str(pictures), "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    report = json.loads(done.stdout)
    assert (done.returncode, report["problems"]) == (0, []), done.stderr
    assert (report["accepted"], report["completed"], report["lost"], report["completed_twice"]) == (504, 504, 0, 0)
    # The killed worker was running a job, which therefore began twice.
    assert report["executions"] > report["accepted"]
    assert report["worker_kill_to_claim_ms"] > 0
    assert report["broker_kill_to_claim_ms"] > 0
    assert "SIGKILL to the broker" in done.stderr


def test_a_folder_without_pictures_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "empd", "demo", "--pictures", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "holds no .png files" in done.stderr


def test_only_its_own_daemons_children_are_killed() -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    daemon = Daemon()
    try:
        for pid in (bystander.pid, os.getpid()):
            with pytest.raises(EmpdError, match="not a child"):
                daemon.kill(pid)
        assert bystander.poll() is None
    finally:
        daemon.close()
        bystander.kill()
        bystander.wait()
    assert not daemon.directory.exists()


@pytest.mark.parametrize("path", sorted(SHIPPED_PICTURES.glob("*.png")), ids=lambda path: path.stem)
def test_the_shipped_pictures_are_shrunk(path: Path) -> None:
    made = png.decode(services.thumbnail({"png": path.read_bytes(), "width": 60}))
    assert (made.width, made.height) == (60, 45)
    assert len(set(made.rows)) > 1


@st.composite
def pictures(draw: st.DrawFn) -> png.Picture:
    width, height, channels = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.sampled_from((1, 2, 3, 4)))
    size = width * channels
    return png.Picture(width, height, channels, [draw(st.binary(min_size=size, max_size=size)) for _ in range(height)])


@given(pictures())
@settings(max_examples=150, deadline=None)
def test_png_there_and_back(picture: png.Picture) -> None:
    assert png.decode(png.encode(picture)) == picture


@given(pictures(), st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_shrinking_keeps_a_flat_picture_flat_and_all_within_range(picture: png.Picture, width: int) -> None:
    small = png.shrink(picture, width)
    assert small.width == min(width, picture.width)
    assert {len(row) for row in small.rows} == {small.width * small.channels}
    assert min(map(min, small.rows)) >= min(map(min, picture.rows))
    assert max(map(max, small.rows)) <= max(map(max, picture.rows))
    flat = picture._replace(rows=[bytes([7]) * len(row) for row in picture.rows])
    assert set(b"".join(png.shrink(flat, width).rows)) == {7}


def test_every_filter_is_undone() -> None:
    """A picture that uses the five filters, made by the definition in the PNG standard, byte by byte."""
    rows = [bytes((x * 31 + y * 17 + x * y) & 255 for x in range(12)) for y in range(10)]
    raw = bytearray()
    for y, row in enumerate(rows):
        above = rows[y - 1] if y else bytes(12)
        raw.append(y % 5)
        for x, value in enumerate(row):
            left, corner = (row[x - 3], above[x - 3]) if x >= 3 else (0, 0)
            up = above[x]
            estimate = left + up - corner
            distances = [abs(estimate - left), abs(estimate - up), abs(estimate - corner)]
            paeth = (left, up, corner)[distances.index(min(distances))]
            raw.append((value - (0, left, up, (left + up) // 2, paeth)[y % 5]) & 255)
    data = png.encode(png.Picture(4, 10, 3, rows))
    head = data[: data.index(b"IDAT") - 4]
    body = zlib.compress(bytes(raw))
    chunk = struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    assert png.decode(head + chunk).rows == rows


@given(st.binary(max_size=80), st.integers(0, 200))
@settings(max_examples=300, deadline=None)
def test_damaged_files_raise_value_error(junk: bytes, at: int) -> None:
    whole = png.encode(png.Picture(3, 2, 3, [bytes(9), bytes(9)]))
    for data in (junk, whole[:at], whole[:at] + junk + whole[at:]):
        try:
            png.decode(data)
        except ValueError:
            continue
