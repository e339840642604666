"""What the shared memory costs: `pytest bench/test_memory.py`. Shows times, asserts none."""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from empd.lifecycle import ChildKind
from empd.memory.arena import Arena
from empd.memory.board import Activity, Board, Gauges, Identity

SIZES = pytest.mark.parametrize("size", [64 << 10, 1 << 20, 64 << 20], ids=["64KiB", "1MiB", "64MiB"])


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board.create()
    made.writer(0, Identity).write(Identity(ChildKind.WORKER, "gpu0", pid=1, device_uuid="GPU-" + "0" * 36))
    made.writer(0, Gauges).write(Gauges(1))
    made.writer(0, Activity).beat(1)
    yield made
    made.close()


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    volatile = Path(f"/dev/shm/empd-bench-{secrets.token_hex(6)}")
    volatile.mkdir(mode=0o700)
    made = Arena(tmp_path, volatile)
    yield made
    made.sweep(set(), -1)
    volatile.rmdir()


def test_board_beat(benchmark: BenchmarkFixture, board: Board) -> None:
    benchmark(board.writer(0, Activity).beat, 2)
    assert board.read(0).activity == Activity(2)


def test_board_write(benchmark: BenchmarkFixture, board: Board) -> None:
    value = Activity(2, job_id=3, epoch=4, progress=0.5)
    benchmark(board.writer(0, Activity).write, value)
    assert board.read(0).activity == value


def test_board_read(benchmark: BenchmarkFixture, board: Board) -> None:
    view = benchmark(board.read, 0)
    assert None not in view


def test_board_read_taken(benchmark: BenchmarkFixture, board: Board) -> None:
    """Few of many slots, as on most boxes."""
    assert len(benchmark(board.read_taken)) == 1


@SIZES
def test_arena_put_and_read_volatile(benchmark: BenchmarkFixture, arena: Arena, size: int) -> None:
    data = os.urandom(size)

    def there_and_back() -> int:
        ref = arena.put(data, durable=False, encoding="bytes")
        length = len(arena.read(ref))
        arena.remove(ref.id)
        return length

    assert benchmark(there_and_back) == size


@SIZES
def test_bare_write_and_read_back_with_crc(benchmark: BenchmarkFixture, arena: Arena, size: int) -> None:
    """The yardstick of the one above: the same bytes through a bare file in the same place."""
    data = os.urandom(size)
    path = arena.volatile_dir / "bare"

    def there_and_back() -> int:
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        view = memoryview(data)
        written = 0
        while written < size:
            written += os.write(fd, view[written:])
        back = os.pread(fd, size, 0)
        zlib.crc32(back)
        os.close(fd)
        path.unlink()
        return len(back)

    assert benchmark(there_and_back) == size


@SIZES
def test_arena_put_durable(benchmark: BenchmarkFixture, arena: Arena, size: int) -> None:
    data = os.urandom(size)

    def put_and_remove() -> bool:
        return arena.remove(arena.put(data, durable=True, encoding="bytes").id)

    assert benchmark(put_and_remove)


@SIZES
def test_arena_view(benchmark: BenchmarkFixture, arena: Arena, size: int) -> None:
    ref = arena.put(os.urandom(size), durable=False, encoding="bytes")

    def look() -> int:
        with arena.view(ref) as view:
            return len(view)

    assert benchmark(look) == size


def test_arena_exists(benchmark: BenchmarkFixture, arena: Arena) -> None:
    ref = arena.put(b"x", durable=True, encoding="bytes")
    assert benchmark(arena.exists, ref)
