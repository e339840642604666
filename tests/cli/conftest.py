"""The command line's daemon, one for each test module."""

from __future__ import annotations

from cli_box import box

__all__ = ["box"]
