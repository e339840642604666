"""The OpenAI services as an operator runs them: the page's mapping and jobs as written, through a whole daemon."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from empd.errors import JobFailed
from tests.box import Box, wait_until
from tests.doubles.openai_api import KEY, OpenAIDouble, serving

PAGE = (Path(__file__).resolve().parents[2] / "empd" / "connectors" / "README.md").read_text()
SECTION = PAGE[PAGE.index("## OpenAI") :]
MAPPING = json.loads(re.findall(r"```json\n(.*?)```", SECTION, re.DOTALL)[0])
COMMANDS = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)[0].splitlines()


@pytest.fixture(scope="module")
def double() -> OpenAIDouble:
    return OpenAIDouble()


@pytest.fixture(scope="module")
def daemon(double: OpenAIDouble) -> Iterator[Box]:
    with serving(double) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setenv("OPENAI_BASE_URL", url)
        with Box(MAPPING) as box:
            yield box


def submitted(daemon: Box, command: str) -> Any:
    """What a command of the page prints."""
    arguments = [sys.executable, "-m", "empd", *shlex.split(command)[1:]]
    environ = {**os.environ, "EMPD_RUNTIME_DIR": str(daemon.runtime_dir)}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=100, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_page_is_true(daemon: Box, double: OpenAIDouble) -> None:
    double.reset()
    text, image, response = (submitted(daemon, command) for command in COMMANDS)
    assert text["text"].strip() == "you said A haiku about queues"
    assert image["served_by"] == "background"
    assert image["assets"][0]["media_type"] == "image/png"
    assert response["text"] == "you said Three facts about the tide"


def test_a_worker_that_dies_submits_nothing_twice(daemon: Box, double: OpenAIDouble) -> None:
    double.reset()
    double.polls = 10**9
    with daemon.client() as client:
        job = client.submit("openai_responses", {"input": "hello"})
        wait_until(lambda: double.count_prefix("/v1/responses/", "GET") > 1, "the response to be polled")
        daemon.signal("openai-0")
        asked = double.count_prefix("/v1/responses/", "GET")
        wait_until(lambda: double.count_prefix("/v1/responses/", "GET") > asked + 1, "the successor to poll")
        double.finish_all()
        assert job.result(30)["text"] == "you said hello"
    assert double.count("/v1/responses") == 1


def test_cancel_reaches_the_service(daemon: Box, double: OpenAIDouble) -> None:
    double.reset()
    double.polls = 10**9
    with daemon.client() as client:
        job = client.submit("openai_responses", {"input": "hello"})
        wait_until(lambda: double.count_prefix("/v1/responses/", "GET") > 0, "the response to be polled")
        job.cancel()
        with pytest.raises(JobFailed) as ended:
            job.result(30)
        assert ended.value.failure == "cancelled"
    assert len(double.cancelled) == 1


def test_no_key_is_seen(daemon: Box, double: OpenAIDouble) -> None:
    double.reset()
    double.fail("/v1/chat/completions", 401, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    with daemon.client() as client:
        with pytest.raises(JobFailed) as ended:
            client.submit("openai_text", {"prompt": "hello"}).result(30)
        assert ended.value.failure == "auth"
        assert KEY not in str(ended.value)
    assert KEY not in daemon.log()
