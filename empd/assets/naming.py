"""What a saved file is called, and the mark by which a store knows whose it is.

    <prefix>/<file name>                                            where the job's payload names the file
    <prefix>/<instance>-<job>/<output>-<hash>[-<stem>].<extension>  else

Never by epoch: two attempts that make the same bytes write the same name. Which of two attempts counts is told by the
mark beside the content; epochs never repeat, and rise with each assignment of one state directory (`instance`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from empd.asset import FOLDER_PATTERN, AssetFailed
from empd.errors import FailureClass
from empd.job import format_id
from empd.media import UNKNOWN, extension

NAME_CHARS_MAX = 900
"""Azure takes 1,024."""

_STEM_CHARS_MAX = 100
_UNSAFE = re.compile(r"[^\w.() +@=,~-]+")
_GENERAL = {UNKNOWN, "text/plain", "application/zip", "application/gzip", "application/json"}
"""Types that say less than a file's own extension may: a .csv is text, a .pt is a zip."""

_ALIASES = {"jpeg": "jpg", "jpe": "jpg", "tif": "tiff", "oga": "ogg", "mp4v": "mp4", "m4v": "mp4", "htm": "html"}


class Mark(NamedTuple):
    """Whose an asset is. Of two with the same `instance`, the one with the higher epoch counts."""

    instance: str
    job_id: int
    epoch: int
    output: int = 0

    def fields(self) -> dict[str, str]:
        """As plain metadata."""
        return {
            "empd_instance": self.instance,
            "empd_job": format_id(self.job_id),
            "empd_epoch": str(self.epoch),
            "empd_output": str(self.output),
        }

    def owns(self, fields: Mapping[str, str]) -> bool:
        """Whether that metadata is of the same job."""
        return fields.get("empd_instance") == self.instance and fields.get("empd_job") == format_id(self.job_id)


def epoch_of(fields: Mapping[str, str]) -> int:
    """The epoch in metadata; -1 when there is none."""
    text = fields.get("empd_epoch", "")
    return int(text) if text.isdecimal() else -1


class Naming(NamedTuple):
    """How one job's assets are called. `file_name` is the payload's wish, empty without one."""

    prefix: str
    mark: Mark
    file_name: str = ""

    @property
    def folder(self) -> str:
        """Where assets lie that the payload does not name; this job's alone."""
        return join(self.prefix, f"{self.mark.instance[:8]}-{format_id(self.mark.job_id)}")

    def final(self, output: int, sha256: str, media_type: str, hint: str = "") -> str:
        """The asset's name. `hint`: what the service calls it."""
        if self.file_name:
            stem, suffix = _split(self.file_name, media_type)
            name = join(self.prefix, f"{stem}-{output}.{suffix}" if output else f"{stem}.{suffix}")
        else:
            stem, suffix = _split(hint, media_type)
            parts = [str(output), sha256[:16], *([stem] if stem else [])]
            name = join(self.folder, f"{'-'.join(parts)}.{suffix}")
        if len(name) > NAME_CHARS_MAX:
            raise AssetFailed(FailureClass.INVALID_INPUT, f"an asset's name has {len(name)} characters", retry=False)
        return name

    def begun(self, output: int, number: int) -> str:
        """The name while content of unknown hash comes in; of this attempt alone."""
        return join(self.folder, f".{output}-{self.mark.epoch:x}-{number}.part")

    def scopes(self) -> list[str]:
        """Beginnings of all names that attempts at this job may have given."""
        scopes = [f"{self.folder}/"]
        if self.file_name:
            scopes.append(join(self.prefix, _split(self.file_name, UNKNOWN)[0]))
        return scopes


def join(*parts: str) -> str:
    """Parts of a name, empty ones left out."""
    return "/".join(part for part in parts if part)


def clean_folder(text: str, key: str) -> str:
    """A prefix as given, without slashes at its ends. Raises AssetFailed when a part of it could be another folder."""
    folder = text.strip("/")
    if not re.fullmatch(FOLDER_PATTERN, folder):
        reason = f"{key}: {text!r} is not a folder; accepted: names of letters, digits and -_.()+@=,~ with / between"
        raise AssetFailed(FailureClass.INVALID_INPUT, reason, retry=False)
    return folder


def clean_file(text: str) -> str:
    """The last part of a path, with what may not stand in a name replaced; empty when nothing is left."""
    last = text.replace("\\", "/").rpartition("/")[2]
    return _UNSAFE.sub("_", last).strip(". ")


def _split(name: str, media_type: str) -> tuple[str, str]:
    """Stem and the extension that is true: the name's own where it fits the media type."""
    name = clean_file(name)
    stem, dot, given = name.rpartition(".")
    if not dot or not stem or len(given) > 12:
        stem, given = name, ""
    told = extension(media_type)
    fits = given and (media_type in _GENERAL or _ALIASES.get(given.lower(), given.lower()) == told)
    return stem[:_STEM_CHARS_MAX], given if fits else told
