"""What holds on every store: names, content of every kind, the fence, and what is swept."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from assets_places import Place

from empd.asset import AssetFailed, AssetRef
from empd.assets.content import BLOCK_BYTES
from empd.assets.naming import Mark
from empd.assets.saver import JobAssets
from empd.errors import FailureClass
from empd.job import format_id

INSTANCE = "0123456789abcdef0123456789abcdef"
JOB = 7 << 32 | 1
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
LARGE = os.urandom(1 << 20) * (3 * BLOCK_BYTES >> 20) + b"end"
T = TypeVar("T")


def mark(epoch: int, job: int = JOB, instance: str = INSTANCE) -> Mark:
    return Mark(instance, job, epoch)


def with_saver(place: Place, work: Callable[[Callable[..., JobAssets]], Awaitable[T]], **options: object) -> T:
    """Runs `work` with `bind(epoch, payload)`, all within one event loop."""

    async def run() -> T:
        saver = place.saver(**options)
        await saver.open()
        try:
            return await work(lambda epoch, payload=None, **other: saver.bind(mark(epoch, **other), payload))
        finally:
            await saver.close()

    return asyncio.run(run())


def save(place: Place, content: Any, *, epoch: int = 1, payload: Any = None, **how: Any) -> AssetRef:
    async def work(bind: Callable[..., JobAssets]) -> AssetRef:
        return await bind(epoch, payload).save(content, **how)

    return with_saver(place, work)


async def chunks(content: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


class Reader:
    """What can be read, some bytes at a time, and does no more of what files do."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, 700_000))


# --- names and metadata ----------------------------------------------------------------------------------------------


def test_an_asset_is_named_by_job_output_and_hash(place: Place) -> None:
    ref = save(place, PNG, epoch=9, output=2)
    digest = hashlib.sha256(PNG).hexdigest()
    assert ref.name == f"{INSTANCE[:8]}-{format_id(JOB)}/2-{digest[:16]}.png"
    assert (ref.media_type, ref.size_bytes, ref.sha256, ref.output) == ("image/png", len(PNG), digest, 2)
    assert ref.provider == place.provider
    assert place.names() == {ref.name}
    assert place.read(ref.name) == PNG
    assert ref.url is not None
    assert ref.url.endswith(ref.name)


def test_the_epoch_is_not_in_the_name(place: Place) -> None:
    assert save(place, PNG, epoch=1).name == save(place, PNG, epoch=2).name


def test_the_payload_names_folder_and_file_and_the_bytes_the_extension(place: Place) -> None:
    payload = {"ctx": {"prefix": "users/7", "filename": "cat.jpeg"}}
    assert save(place, PNG, payload=payload).name == "users/7/cat.png"
    assert save(place, PNG, payload=payload, output=1).name == "users/7/cat-1.png"
    assert save(place, b"a,b\n1,2\n", payload={"ctx": {"filename": "table.csv"}}).name == "table.csv"


def test_what_the_service_calls_it_is_only_a_part_of_the_name(place: Place) -> None:
    name = save(place, PNG, name="out/ComfyUI_00001_.png").name
    assert name.startswith(f"{INSTANCE[:8]}-{format_id(JOB)}/0-")
    assert name.endswith("-ComfyUI_00001_.png")


def test_a_prefix_of_the_service_comes_first(place: Place) -> None:
    async def work(bind: Callable[..., JobAssets]) -> AssetRef:
        return await bind(1, {"ctx": {"prefix": "b", "filename": "c"}}).save(PNG)

    assert with_saver(place, work, prefix="a").name == "a/b/c.png"


@pytest.mark.parametrize("prefix", ["../up", "a/../b", "/..", ".hidden", "a//b", "a/.empd", "a\0b"])
def test_no_payload_leads_out_of_the_folder(place: Place, prefix: str) -> None:
    with pytest.raises(AssetFailed) as caught:
        save(place, PNG, payload={"ctx": {"prefix": prefix}})
    assert (caught.value.failure, caught.value.retry) == (FailureClass.INVALID_INPUT, False)
    assert place.names() == set()


@pytest.mark.parametrize(
    "wish", [{"bucket": "other"}, {"provider": "aws"}, {"cdnUrl": "http://10.0.0.1"}, {"prefix": 3}]
)
def test_a_payload_cannot_choose_where_the_daemons_credentials_write(place: Place, wish: dict[str, Any]) -> None:
    with pytest.raises(AssetFailed, match=f"payload.ctx.{next(iter(wish))}"):
        save(place, PNG, payload={"ctx": wish})


def test_file_names_are_made_harmless(place: Place) -> None:
    assert save(place, PNG, payload={"ctx": {"filename": "../../etc/pass\nwd"}}).name == "pass_wd.png"
    assert save(place, PNG, payload={"ctx": {"filename": "..png"}}).name == "png.png"


def test_names_may_have_any_letters(place: Place) -> None:
    ref = save(place, PNG, payload={"ctx": {"prefix": "größe/船", "filename": "ein Schiff (2).png"}})
    assert ref.name == "größe/船/ein Schiff (2).png"
    assert place.read(ref.name) == PNG
    assert ref.url is not None
    assert ref.url.isascii()


# --- content ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [PNG, LARGE, b"", LARGE[:BLOCK_BYTES], LARGE[: BLOCK_BYTES + 1]], ids=len)
def test_every_kind_of_content_is_saved_whole(place: Place, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    encoded = base64.b64encode(content).decode()

    async def work(bind: Callable[..., JobAssets]) -> list[AssetRef]:
        assets = bind(1)
        kinds = [content, bytearray(content), memoryview(content), encoded, f"data:image/png;base64,{encoded}", path]
        kinds += [io.BytesIO(content), Reader(content), chunks(content, 1000), chunks(content, BLOCK_BYTES + 7)]
        return [await assets.save(kind, output=index) for index, kind in enumerate(kinds)]

    refs = with_saver(place, work)
    assert {ref.sha256 for ref in refs} == {hashlib.sha256(content).hexdigest()}
    assert {ref.size_bytes for ref in refs} == {len(content)}
    assert len({ref.media_type for ref in refs}) == 1
    assert place.names() == {ref.name for ref in refs}
    assert {place.read(ref.name) for ref in refs} == {content}


@pytest.mark.parametrize("content", ["no base64!", "data:image/png;base64,=====", "abc", "häh="])
def test_broken_base64_is_said_and_nothing_saved(place: Place, content: str) -> None:
    with pytest.raises(AssetFailed, match="base64") as caught:
        save(place, content)
    assert caught.value.failure is FailureClass.BAD_RESPONSE
    assert place.names() == set()


def test_base64_with_line_breaks_is_taken(place: Place) -> None:
    encoded = base64.encodebytes(PNG).decode()
    assert "\n" in encoded
    assert save(place, encoded).sha256 == hashlib.sha256(PNG).hexdigest()


def test_what_is_no_file_is_said(place: Place, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, tmp_path / "missing"):
        with pytest.raises(AssetFailed) as caught:
            save(place, path)
        assert caught.value.failure is FailureClass.NOT_FOUND


@pytest.mark.parametrize("after", [0, BLOCK_BYTES + 5, 3 * BLOCK_BYTES])
def test_a_stream_that_breaks_leaves_nothing(place: Place, after: int) -> None:
    async def broken() -> AsyncIterator[bytes]:
        async for chunk in chunks(LARGE[:after], 100_000):
            yield chunk
        raise ConnectionResetError("the service is gone")

    with pytest.raises(ConnectionResetError):
        save(place, broken())
    assert place.names() == set()


def test_a_save_that_is_cancelled_leaves_nothing(place: Place) -> None:
    async def work(bind: Callable[..., JobAssets]) -> None:
        reached = asyncio.Event()

        async def stuck() -> AsyncIterator[bytes]:
            yield LARGE
            reached.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(bind(1).save(stuck()))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with_saver(place, work)
    assert place.names() == set()


def test_save_assets_false_keeps_nothing_and_tells_all_the_same(place: Place) -> None:
    for content in (PNG, LARGE):
        ref = save(place, content, payload={"save_assets": False})
        assert (ref.url, ref.provider, ref.cdn_url) == (None, "", None)
        assert (ref.size_bytes, ref.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert place.names() == set()


# --- the fence -------------------------------------------------------------------------------------------------------

NAMED = {"ctx": {"filename": "result.bin"}}


@pytest.mark.parametrize("size", [len(PNG), len(LARGE)])
def test_a_stale_epoch_never_overwrites(place: Place, size: int) -> None:
    newer, older = LARGE[:size], LARGE[-size:] if size < len(LARGE) else LARGE[::-1]
    kept = save(place, newer, epoch=5, payload=NAMED)
    with pytest.raises(AssetFailed, match="later attempt") as caught:
        save(place, older, epoch=4, payload=NAMED)
    assert (caught.value.failure, caught.value.retry) == (FailureClass.CANCELLED, False)
    assert place.names() == {kept.name}
    assert place.read(kept.name) == newer


@pytest.mark.parametrize("size", [len(PNG), len(LARGE)])
def test_a_higher_epoch_overwrites(place: Place, size: int) -> None:
    save(place, LARGE[:size], epoch=4, payload=NAMED)
    ref = save(place, LARGE[::-1][:size], epoch=5, payload=NAMED)
    assert place.names() == {ref.name}
    assert place.read(ref.name) == LARGE[::-1][:size]


def test_the_same_attempt_may_save_again(place: Place) -> None:
    first, second = (save(place, PNG, epoch=4, payload=NAMED) for _ in range(2))
    assert first == second


def test_of_attempts_at_once_the_highest_epoch_stays(place: Place) -> None:
    contents = {epoch: str(epoch).encode() * 100 for epoch in range(1, 9)}

    async def work(bind: Callable[..., JobAssets]) -> list[Any]:
        saving = (bind(epoch, NAMED).save(content) for epoch, content in contents.items())
        return await asyncio.gather(*saving, return_exceptions=True)

    for outcome in with_saver(place, work):
        assert isinstance(outcome, AssetRef) or outcome.failure in (FailureClass.CANCELLED, FailureClass.UNAVAILABLE)
    assert place.read("result.bin") == contents[8]


def test_what_was_not_saved_by_empd_is_left_alone(place: Place) -> None:
    place.plant("result.png", b"somebody else's")
    with pytest.raises(AssetFailed, match="was not saved by empd") as caught:
        save(place, PNG, payload=NAMED)
    assert caught.value.retry is False
    assert place.read("result.png") == b"somebody else's"


def test_epochs_of_two_boxes_are_not_compared(place: Place) -> None:
    async def work(bind: Callable[..., JobAssets]) -> AssetRef:
        await bind(1 << 40, NAMED, instance="a" * 32).save(PNG)
        return await bind(1, NAMED, instance="b" * 32).save(PNG + b"b")

    ref = with_saver(place, work)
    assert place.read(ref.name) == PNG + b"b"


# --- what is swept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [None, NAMED])
def test_the_winner_sweeps_what_losers_left_and_nothing_else(place: Place, payload: Any) -> None:
    async def work(bind: Callable[..., JobAssets]) -> tuple[set[str], set[str], int]:
        neighbour = await bind(3, payload and {"ctx": {"filename": "result-of-a-neighbour"}}, job=JOB + 1).save(PNG)
        loser, winner, later = bind(4, payload), bind(5, payload), bind(6, payload)
        lost = [await loser.save(f"lost {output}".encode(), output=output) for output in range(3)]
        won = [await winner.save(f"won {output}".encode(), output=output) for output in range(2)]
        coming = await later.save(b"coming", output=7)
        removed = await winner.settle()
        kept = {ref.name for ref in (neighbour, coming, *won)}
        return kept, {ref.name for ref in lost} - kept, removed

    kept, lost, removed = with_saver(place, work)
    assert place.names() == kept
    assert removed == len(lost) > 0


def test_a_loser_takes_back_only_what_is_still_its_own(place: Place) -> None:
    async def work(bind: Callable[..., JobAssets]) -> tuple[AssetRef, int]:
        loser, winner = bind(4, NAMED), bind(5, NAMED)
        await loser.save(b"lost 0")
        await loser.save(b"lost 1", output=1)
        won = await winner.save(b"won 0")
        return won, await loser.discard()

    won, removed = with_saver(place, work)
    assert removed == 1
    assert place.names() == {won.name}
    assert place.read(won.name) == b"won 0"


def test_metadata_is_kept_whatever_it_holds(place: Place) -> None:
    ref = save(place, PNG, metadata={"prompt": "ein Schiff — 船\n", "seed": 7})
    assert place.names() == {ref.name}
    with pytest.raises(AssetFailed, match="identifier"):
        save(place, PNG, metadata={"no-identifier": "x"})
