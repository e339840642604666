"""`context.assets` in the whole daemon: to this machine and to Azurite, with workers that die."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from empd import Client
from empd.errors import JobFailed
from tests.azurite import Azurite
from tests.box import Box, mapping_of, service, wait_until

PNG = b"\x89PNG\r\n\x1a\n"


def python(name: str, store: str = "default", **more: Any) -> Any:
    return service("PythonConnector", api_config={"callable": f"files:{name}"}, assets=store, **more)


@pytest.fixture(scope="module")
def daemon(azurite: Azurite) -> Iterator[Box]:
    mapping = mapping_of(
        local=python("pictures"),
        azure=python("pictures", "cloud", worker={"instances": 2}),
        thread=python("text"),
        process=python("text", isolation="process"),
        streamed=python("streamed", isolation="process"),
        wrong=python("pictures", "nowhere"),
    )
    mapping["assets"] = {
        "cloud": azurite.store("daemon"),
        "nowhere": {**azurite.store("daemon"), "container": "missing"},
    }
    with Box(mapping, backoff_s=0, max_crashes=3) as running:
        yield running


@pytest.fixture
def client(daemon: Box) -> Iterator[Client]:
    with daemon.client() as connected:
        yield connected


def folder(names: Any, handle: Any) -> set[str]:
    return {name for name in names if f"-{handle.id}/" in name}


def test_a_local_asset_is_in_the_result_and_served(daemon: Box, client: Client) -> None:
    handle = client.submit("local", {"count": 1})
    [ref] = handle.result(30)["files"]
    content = PNG + b"final-0"
    assert ref["sha256"] == hashlib.sha256(content).hexdigest()
    assert (ref["media_type"], ref["size_bytes"], ref["provider"]) == ("image/png", len(content), "local")
    with urllib.request.urlopen(daemon.http() + ref["url"]) as answer:
        assert answer.read() == content
        assert answer.headers["Content-Type"] == "image/png"
    part = urllib.request.Request(daemon.http() + ref["url"], headers={"Range": "bytes=1-3"})
    with urllib.request.urlopen(part) as answer:
        assert (answer.status, answer.read()) == (206, b"PNG")


@pytest.mark.parametrize("name", ["thread", "process"])
def test_plain_functions_save_too(daemon: Box, client: Client, name: str) -> None:
    ref = client.submit(name, {"text": "# Überschrift"}).result(30)
    assert ref["name"].endswith("-note.md")
    assert ref["media_type"] == "text/plain"
    with urllib.request.urlopen(daemon.http() + ref["url"]) as answer:
        assert answer.read() == "# Überschrift".encode()


def test_a_process_of_its_own_hands_on_what_it_reads_without_holding_it(client: Client) -> None:
    result = client.submit("streamed", {"mib": 96}).result(60)
    assert [ref["size_bytes"] for ref in result["files"]] == [96 << 20] * 2
    assert len({ref["sha256"] for ref in result["files"]}) == 1
    assert result["grown_kib"] < 32 << 10


def test_nothing_is_kept_when_the_payload_says_so(daemon: Box, client: Client) -> None:
    handle = client.submit("local", {"count": 1, "save_assets": False})
    [ref] = handle.result(30)["files"]
    assert "url" not in ref
    assert ref["size_bytes"] == len(PNG) + 7
    assert not list((daemon.state_dir / "assets").rglob(f"*-{handle.id}"))


def test_a_worker_that_dies_leaves_nothing_beside_what_its_successor_saves(azurite: Azurite, client: Client) -> None:
    handle = client.submit("azure", {"count": 3, "ends": {"1": "crash", "2": "crash"}})
    refs = handle.result(60)["files"]
    assert len(refs) == 3
    assert folder(azurite.blobs("daemon"), handle) == {ref["name"] for ref in refs}
    assert {azurite.read("daemon", ref["name"]) for ref in refs} == {
        PNG + f"final-{output}".encode() for output in range(3)
    }


def test_many_jobs_with_crashes_in_between_leave_each_file_once(azurite: Azurite, client: Client) -> None:
    ends = [{}, {"1": "fail"}, {}, {"1": "crash"}]
    jobs = client.submit_many("azure", [{"count": 2, "ends": ends[n % 4]} for n in range(12)])
    results = [job.result(90) for job in jobs]
    kept = {ref["name"] for result in results for ref in result["files"]}
    assert len(kept) == 24
    assert {name for handle in jobs for name in folder(azurite.blobs("daemon"), handle)} == kept


def test_a_job_that_fails_for_good_takes_its_files_back(azurite: Azurite, client: Client) -> None:
    handle = client.submit("azure", {"count": 2, "ends": {"1": "fail"}}, retries=0)
    with pytest.raises(JobFailed, match="as it was told"):
        handle.result(30)
    wait_until(lambda: not folder(azurite.blobs("daemon"), handle), "the files to be gone")


def test_a_store_that_fails_holds_back_its_service_and_no_other(daemon: Box, client: Client) -> None:
    handle = client.submit("wrong", {"count": 1}, retries=0)

    def told() -> bool:
        return any(reason in json.dumps(client.status()) for reason in ("assets cannot be saved", "ContainerNotFound"))

    wait_until(told, "the reason to be told")
    assert client.submit("local", {"count": 1}).result(30)
    assert handle.cancel()
    assert "devstoreaccount1;AccountKey" not in daemon.log()
    assert "Eby8vdM02x" not in daemon.log()


def test_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    mapping = mapping_of(large=python("large"))
    with Azurite(in_memory=False) as azurite:
        mapping["assets"] = {"default": azurite.store("large")}
        with Box(mapping) as daemon, daemon.client() as client:
            payload = {"path": str(tmp_path / "file"), "mib": 160}
            result = client.submit("large", payload).result(110)
        assert result["file"]["size_bytes"] == 160 << 20
        assert result["grown_kib"] < 64 << 10
        assert set(azurite.blobs("large")) == {result["file"]["name"]}
        digest = hashlib.sha256(azurite.read("large", result["file"]["name"])).hexdigest()
    assert digest == result["file"]["sha256"]
