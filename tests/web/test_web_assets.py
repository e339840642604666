"""Assets over HTTP: bytes, ranges, types; and that nothing leads out of their folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from urllib.parse import quote

import pytest
from web_broker import BrokerDouble
from web_harness import Web, wait_for

PNG = b"\x89PNG\r\n\x1a\n" + os.urandom(600_000)


@pytest.fixture
def asset(module_web: Web) -> str:
    """The path of an asset in a folder with a hard name."""
    folder = module_web.state_dir / "assets" / "a b" / "ü"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "0-cat.png").write_bytes(PNG)
    (folder / ".0-cat.png.empd").write_text("{}")
    return "/v1/assets/" + quote("a b/ü/0-cat.png")


def test_bytes_ranges_and_conditions(module_web: Web, asset: str) -> None:
    whole = module_web.ask("GET", asset)
    assert (whole.status, whole.body, whole.headers["Content-Type"]) == (200, PNG, "image/png")
    part = module_web.ask("GET", asset, Range="bytes=1-3")
    assert (part.status, part.body) == (206, b"PNG")
    assert part.headers["Content-Range"] == f"bytes 1-3/{len(PNG)}"
    assert module_web.ask("GET", asset, Range=f"bytes={len(PNG)}-").status == 416
    assert module_web.ask("GET", asset, If_None_Match=whole.headers["ETag"]).status == 304
    head = module_web.ask("HEAD", asset)
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(PNG)))


def test_what_is_written_again_has_another_etag(module_web: Web, asset: str) -> None:
    path = module_web.state_dir / "assets" / "again.txt"
    path.write_bytes(b"one")
    first = module_web.ask("GET", "/v1/assets/again.txt")
    os.replace(_written(path.with_name("other"), b"two"), path)
    second = module_web.ask("GET", "/v1/assets/again.txt", If_None_Match=first.headers["ETag"])
    assert (second.status, second.body) == (200, b"two")
    assert "no-cache" in first.headers["Cache-Control"]


def _written(path: os.PathLike[str], content: bytes) -> os.PathLike[str]:
    with open(path, "wb") as file:
        file.write(content)
    os.utime(path, ns=(1, 1))
    return path


@pytest.mark.parametrize(
    "name",
    [
        "a%20b/%C3%BC/.0-cat.png.empd",
        "a%20b/%C3%BC/missing.png",
        "a%20b/%C3%BC",
        "%2e%2e/journal.db",
        "..%2fjournal.db",
        "a%20b/..%2f..%2fjournal.db",
        "%2fetc/passwd",
        "a%20b//x",
        "x%00y",
        ".parts",
        "link",
        "x" * 5000,
    ],
)
def test_nothing_else_is_found(module_web: Web, asset: str, name: str) -> None:
    (module_web.state_dir / "journal.db").write_text("secret")
    link = module_web.state_dir / "assets" / "link"
    if not link.is_symlink():
        link.symlink_to(module_web.state_dir / "journal.db")
    assert module_web.ask("GET", f"/v1/assets/{name}").status == 404


def test_files_past_their_time_are_dropped(broker: BrokerDouble, start_web: Callable[..., Web]) -> None:
    web = start_web(assets_keep_s=1)
    folder = web.state_dir / "assets" / "old"
    folder.mkdir(parents=True)
    (folder / "x.txt").write_text("x")
    os.utime(folder / "x.txt", (1, 1))
    wait_for(lambda: not folder.exists(), "the file to be dropped", 30)
