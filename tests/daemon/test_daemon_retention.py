"""Results and history past their time, end to end: they are gone, and everybody says so in the same words."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from empd.errors import EmpdError
from tests.box import Box, wait_until


def get(daemon: Box, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(daemon.http() + path, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def blobs(daemon: Box) -> set[str]:
    return {path.name for path in (daemon.state_dir / "spool").glob("??/*")}


def test_a_result_goes_first_then_the_job(box: Callable[..., Box]) -> None:
    daemon = box(result_keep_s=2, history_keep_s=5)
    content = os.urandom(100_000)
    with daemon.client() as client:
        job = client.submit("noop", content)
        assert len(job.result(60)) > 0
        wait_until(lambda: get(daemon, f"/v1/jobs/{job.id}")[1].get("state") == "completed", "the job in history")
        assert blobs(daemon)
        wait_until(lambda: not blobs(daemon), "the result's blob to go")
        status, body = get(daemon, f"/v1/jobs/{job.id}")
        assert (status, body["state"]) == (200, "completed")  # the job is still known
        wait_until(lambda: get(daemon, f"/v1/jobs/{job.id}")[0] == 410, "the job to leave history")
        assert "expired_from_history" in json.dumps(get(daemon, f"/v1/jobs/{job.id}")[1])
        with daemon.client() as another, pytest.raises(EmpdError, match="expired"):
            another.job(job.id).result(60)
        # What was never there is another matter.
        assert get(daemon, "/v1/jobs/0000000000001")[0] == 404
