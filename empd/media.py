"""What bytes are, told from the bytes themselves: media types by their magic numbers, never by a file's name.

Numbers from the formats' own specifications: RFC 2083 (PNG), ISO/IEC 14496-12 (ftyp boxes and their brands), RFC 8794
(EBML, with Matroska's doc type), RFC 3533 (Ogg), the glTF 2.0 and safetensors descriptions, and so on.
"""

from __future__ import annotations

import codecs

import msgspec

HEAD_BYTES = 4096
"""How many of the first bytes suffice."""

UNKNOWN = "application/octet-stream"

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"\x76\x2f\x31\x01", "image/x-exr"),
    (b"8BPS", "image/vnd.adobe.photoshop"),
    (b"ID3", "audio/mpeg"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"glTF", "model/gltf-binary"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b", "application/gzip"),
    (b"\x28\xb5\x2f\xfd", "application/zstd"),
    (b"\x93NUMPY", "application/x-npy"),
    (b"GGUF", "application/x-gguf"),
)
_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
_BRANDS = {
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"mif1": "image/heif",
    b"M4A ": "audio/mp4",
    b"qt  ": "video/quicktime",
}
_EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/bmp": "bmp",
    "image/tiff": "tiff",
    "image/webp": "webp",
    "image/avif": "avif",
    "image/heic": "heic",
    "image/heif": "heif",
    "image/svg+xml": "svg",
    "image/x-exr": "exr",
    "image/vnd.adobe.photoshop": "psd",
    "audio/mpeg": "mp3",
    "audio/flac": "flac",
    "audio/ogg": "ogg",
    "audio/wav": "wav",
    "audio/mp4": "m4a",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "video/ogg": "ogv",
    "video/x-matroska": "mkv",
    "video/x-msvideo": "avi",
    "model/gltf-binary": "glb",
    "application/pdf": "pdf",
    "application/zip": "zip",
    "application/gzip": "gz",
    "application/zstd": "zst",
    "application/x-npy": "npy",
    "application/x-gguf": "gguf",
    "application/x-safetensors": "safetensors",
    "application/json": "json",
    "text/plain": "txt",
}


def media_type(head: bytes | memoryview, whole: bool = False) -> str:
    """The media type of content that begins with `head`; `whole`: that is all of it. UNKNOWN when nothing fits."""
    head = bytes(head if whole else head[:HEAD_BYTES])
    if head[:4] == b"RIFF" and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video/mp4")
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "video/webm" if b"webm" in head[:64] else "video/x-matroska"
    if head[:4] == b"OggS" and b"\x80theora" in head[:64]:
        return "video/ogg"
    for magic, found in _MAGIC:
        if head.startswith(magic):
            return found
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "image/bmp"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2:
        return "audio/mpeg"  # a frame of layer III without tags before it
    if len(head) > 9 and head[8:10] == b'{"' and 2 <= int.from_bytes(head[:8], "little") < 1 << 32:
        return "application/x-safetensors"
    return _text(head, whole)


def extension(kind: str) -> str:
    """The usual file extension of a media type, without a dot; `bin` when there is none."""
    return _EXTENSIONS.get(kind.partition(";")[0].strip().lower(), "bin")


def _text(head: bytes, whole: bool) -> str:
    try:
        # Not final: the head may end within a character.
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=whole)
    except UnicodeDecodeError:
        return UNKNOWN
    if not text or any(ord(char) < 32 and char not in "\t\n\r\f\x1b" for char in text):
        return UNKNOWN
    start = text.lstrip("\ufeff \t\r\n")
    if start.startswith(("<svg", "<?xml")) and "<svg" in start[:HEAD_BYTES]:
        return "image/svg+xml"
    if whole and start[:1] in ("{", "["):
        try:
            msgspec.json.decode(head)
        except msgspec.DecodeError:
            return "text/plain"
        return "application/json"
    return "text/plain"
