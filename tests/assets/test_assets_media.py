"""Media types are told from bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from empd.media import UNKNOWN, extension, media_type

PICTURES = Path(__file__).parents[2] / "empd/cli/demo/pictures"
TENSORS = b'{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'

SAMPLES = [
    (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png", "png"),
    (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "image/jpeg", "jpg"),
    (b"GIF89a\x01\0\x01\0", "image/gif", "gif"),
    (b"BM" + struct.pack("<IHHI", 70, 0, 0, 54), "image/bmp", "bmp"),
    (b"RIFF\x24\0\0\0WEBPVP8 ", "image/webp", "webp"),
    (b"RIFF\x24\0\0\0WAVEfmt ", "audio/wav", "wav"),
    (b"RIFF\x24\0\0\0AVI LIST", "video/x-msvideo", "avi"),
    (b"\0\0\0\x20ftypisom\0\0\x02\0", "video/mp4", "mp4"),
    (b"\0\0\0\x20ftypmp42\0\0\0\0", "video/mp4", "mp4"),
    (b"\0\0\0\x1cftypM4A \0\0\0\0", "audio/mp4", "m4a"),
    (b"\0\0\0\x14ftypqt  \0\0\0\0", "video/quicktime", "mov"),
    (b"\0\0\0\x1cftypavif\0\0\0\0", "image/avif", "avif"),
    (b"\x1a\x45\xdf\xa3\x9f\x42\x82\x84webm", "video/webm", "webm"),
    (b"\x1a\x45\xdf\xa3\xa3\x42\x82\x88matroska", "video/x-matroska", "mkv"),
    (b"OggS\0\x02" + bytes(22) + b"\x01vorbis", "audio/ogg", "ogg"),
    (b"OggS\0\x02" + bytes(22) + b"\x80theora", "video/ogg", "ogv"),
    (b"ID3\x04\0\0\0\0\0\x23", "audio/mpeg", "mp3"),
    (b"\xff\xfb\x90\x64\0\0", "audio/mpeg", "mp3"),
    (b"fLaC\0\0\0\x22", "audio/flac", "flac"),
    (b"glTF\x02\0\0\0", "model/gltf-binary", "glb"),
    (b"%PDF-1.7\n", "application/pdf", "pdf"),
    (b"PK\x03\x04\x14\0", "application/zip", "zip"),
    (struct.pack("<Q", len(TENSORS)) + TENSORS, "application/x-safetensors", "safetensors"),
    (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml", "svg"),
    (b' {"a": [1, 2]}\n', "application/json", "json"),
    (b"{not json", "text/plain", "txt"),
    ("BMW fährt, GIF nicht".encode(), "text/plain", "txt"),
    (b"\x00\x01\x02\x03", UNKNOWN, "bin"),
    (b"", UNKNOWN, "bin"),
]


@pytest.mark.parametrize(("content", "expected", "suffix"), SAMPLES)
def test_each_format_is_told_from_its_bytes(content: bytes, expected: str, suffix: str) -> None:
    assert media_type(content, whole=True) == expected
    assert extension(expected) == suffix


def test_the_repositorys_own_pictures_are_png() -> None:
    found = {media_type(path.read_bytes()) for path in PICTURES.iterdir()}
    assert found == {"image/png"}


def test_a_head_that_ends_within_a_character_is_still_text() -> None:
    assert media_type(("a" * 5 + "ä").encode()[:-1]) == "text/plain"
    assert media_type(("a" * 5 + "ä").encode()[:-1], whole=True) == UNKNOWN


def test_a_parameter_does_not_hide_the_extension() -> None:
    assert extension("text/plain; charset=utf-8") == "txt"
    assert extension("application/x-nobody-knows") == "bin"
