"""The README's own test of a connector, as written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from test_connectors_readme import BLOCKS

from empd.connectors.conformance import CHECKS


def test_the_test_that_is_shown_runs_as_written(tmp_path: Path) -> None:
    (source,) = [text for kind, text in BLOCKS if kind == "python" and text.startswith("# test_shown.py")]
    (tmp_path / "test_shown.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shown.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(CHECKS)} passed" in done.stdout
