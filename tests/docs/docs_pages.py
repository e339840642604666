"""The pages that people read, and what can be picked out of them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "bench" / "README.md",
        ROOT / "systemd" / "README.md",
        ROOT / "empd" / "connectors" / "README.md",
        ROOT / "empd" / "wire" / "PROTOCOL.md",
    )
}
README = PAGES["README.md"]

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(kind: str, text: str = README) -> list[str]:
    """The fenced blocks of one kind (`sh`, `python`, `json`), in order."""
    return [found.group(2) for found in _FENCED.finditer(text) if found.group(1) == kind]


def spans(text: str) -> list[str]:
    """What stands between backticks in running text."""
    return re.findall(r"`([^`\n]+)`", _FENCED.sub("", text))


def section(heading: str, text: str = README) -> str:
    """The text under a heading, to the next one. Raises ValueError when there is no such heading."""
    begin = text.index(f"\n## {heading}\n")
    return text[begin : (text + "\n## ").index("\n## ", begin + 1)]


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the README, without its head."""
    lines = [line for line in section(heading).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def flat(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())
