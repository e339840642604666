"""A daemon that cannot serve says so in a line, and ends."""

from __future__ import annotations

from collections.abc import Callable

from empd.lifecycle import EXIT_OPERATOR
from tests.box import Box


def test_a_damaged_journal_ends_the_daemon_with_a_line_that_says_what_to_do(box: Callable[..., Box]) -> None:
    daemon = box()
    with daemon.client() as client:
        client.submit("noop", {}).result(60)
    assert daemon.stop() == 0
    journal = daemon.state_dir / "journal.db"
    journal.write_bytes(b"no database" * 1000)
    before = journal.read_bytes()
    daemon.log_path.write_text("")
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(60) == EXIT_OPERATOR
    assert "journal" in daemon.log()
    assert "Traceback" not in daemon.log()
    assert journal.read_bytes() == before


def test_a_newer_journal_is_refused_before_any_write(box: Callable[..., Box]) -> None:
    daemon = box()
    assert daemon.stop() == 0
    journal = daemon.state_dir / "journal.db"
    data = bytearray(journal.read_bytes())
    data[60:64] = (9999).to_bytes(4, "big")  # user_version
    journal.write_bytes(data)
    daemon.log_path.write_text("")
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(60) == EXIT_OPERATOR
    assert "newer" in daemon.log()
    assert journal.read_bytes() == bytes(data)
