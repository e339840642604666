"""The web process inside a whole daemon: real broker, workers and journal, and kills in the middle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp
from web_harness import Answer, send

from tests.box import Box, mapping_of, service, wait_until


def ask(daemon: Box, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    return asyncio.run(send(daemon.http() + path, method, data, headers))


def get(daemon: Box, path: str) -> Any:
    answer = ask(daemon, "GET", path)
    assert answer.status == 200, answer.body
    return answer.json()


def ended_jobs(daemon: Box) -> list[dict[str, Any]]:
    """All that history shows, over all pages."""
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = get(daemon, f"/v1/jobs?state=completed&limit=500{cursor}")
        found += page["jobs"]
        if page["cursor"] is None:
            return found
        cursor = f"&cursor={page['cursor']}"


def slow() -> dict[str, Any]:
    return mapping_of(slow=service(api_config={"duration_s": 60, "steps": 600}))


def test_submit_wait_and_look_it_up_again(box: Callable[..., Box]) -> None:
    daemon = box()
    wanted = {"service": "noop", "payload": {"x": [1, "é"]}, "labels": {"a": "b"}}
    answer = ask(daemon, "POST", "/v1/jobs?wait=10", wanted)
    assert answer.status == 200, answer.body
    job = answer.json()
    assert job["state"] == "completed"
    shown = get(daemon, f"/v1/jobs/{job['id']}")
    assert (shown["result"], shown["labels"]) == (job["result"], {"a": "b"})
    wait_until(lambda: [each["id"] for each in ended_jobs(daemon)] == [job["id"]], "history has the job")
    assert ask(daemon, "POST", "/v1/jobs", {"service": "nobody"}).status == 422
    assert get(daemon, "/readyz")["ready"] is True


def test_history_has_every_job_once_over_kills_of_web_and_broker(box: Callable[..., Box]) -> None:
    daemon = box()
    total = 0
    for victim in ("web", "broker", "web", ""):
        with daemon.client() as client:
            jobs = client.submit_many("noop", [{"n": n} for n in range(400)])
            if victim:
                daemon.signal(victim)
            assert len(jobs.results(60)) == 400
            total += 400
    wait_until(lambda: healthy(daemon), "the web process is back")
    wait_until(lambda: len(ended_jobs(daemon)) >= total, "history has all jobs")
    ids = [job["id"] for job in ended_jobs(daemon)]
    assert len(ids) == len(set(ids)) == total


def healthy(daemon: Box) -> bool:
    try:
        return ask(daemon, "GET", "/readyz").status == 200
    except aiohttp.ClientError:
        return False


def test_progress_and_cancel_show_on_the_stream(box: Callable[..., Box]) -> None:
    daemon = box(slow())
    name = ask(daemon, "POST", "/v1/jobs", {"service": "slow"}).json()["id"]
    url = f"{daemon.http()}/v1/jobs/{name}/events"

    async def follow() -> list[str]:
        seen: list[str] = []
        async with asyncio.timeout(30), aiohttp.ClientSession() as session, session.get(url) as answer:
            async for raw in answer.content:
                if raw.startswith(b"event: "):
                    seen.append(raw[7:].decode().strip())
                    if seen[-1] == "progress" and seen.count("progress") == 2:
                        async with session.delete(f"{daemon.http()}/v1/jobs/{name}") as cancelled:
                            assert cancelled.status in (200, 202)
        return seen

    seen = asyncio.run(follow())
    assert seen[0] == "state"
    assert seen[-1] == "cancelled"
    assert "stopping" in seen


def test_streams_outlive_the_broker(box: Callable[..., Box]) -> None:
    daemon = box()
    url = f"{daemon.http()}/v1/events"

    async def follow() -> list[str]:
        seen: list[str] = []
        async with asyncio.timeout(30), aiohttp.ClientSession() as session, session.get(url) as answer:
            await asyncio.to_thread(daemon.signal, "broker")
            async with session.post(f"{daemon.http()}/v1/jobs?wait=20", json={"service": "noop"}) as ended:
                assert ended.status == 200, await ended.text()
            async for raw in answer.content:
                if raw.startswith(b"event: "):
                    seen.append(raw[7:].decode().strip())
                    if seen[-1] == "completed":
                        break
        return seen

    assert asyncio.run(follow()) == ["submitted", "assigned", "completed"]


def test_readyz_tells_a_drain(box: Callable[..., Box]) -> None:
    daemon = box()
    with daemon.client() as client:
        client.operate("drain")
        wait_until(lambda: ask(daemon, "GET", "/readyz").status == 503, "not ready while drained")
        client.operate("resume")
        wait_until(lambda: ask(daemon, "GET", "/readyz").status == 200, "ready again")


def test_blob_payload_and_large_result(box: Callable[..., Box]) -> None:
    daemon = box()
    content = json.dumps({"text": "x" * 300_000}).encode()
    blob = ask(daemon, "POST", "/v1/blobs", content, **{"Content-Type": "application/json"}).json()
    job = ask(daemon, "POST", "/v1/jobs?wait=20", {"service": "noop", "payload": {"blob": blob["blob"]}}).json()
    assert job["state"] == "completed", job
    result = ask(daemon, "GET", f"/v1/jobs/{job['id']}/result")
    assert len(result.body) > 300_000
    part = ask(daemon, "GET", f"/v1/jobs/{job['id']}/result", Range="bytes=10-19")
    assert (part.status, part.body) == (206, result.body[10:20])


def test_the_same_idempotency_key_is_the_same_job(box: Callable[..., Box]) -> None:
    daemon = box(slow())
    one = ask(daemon, "POST", "/v1/jobs", {"service": "slow"}, **{"Idempotency-Key": "k"}).json()["id"]
    two = ask(daemon, "POST", "/v1/jobs", {"service": "slow"}, **{"Idempotency-Key": "k"}).json()["id"]
    assert one == two
    other = ask(daemon, "POST", "/v1/jobs", {"service": "slow", "payload": 1}, **{"Idempotency-Key": "k"})
    assert other.status == 409
    ask(daemon, "DELETE", f"/v1/jobs/{one}")


def test_metrics_of_the_whole_daemon(box: Callable[..., Box]) -> None:
    daemon = box()
    ask(daemon, "POST", "/v1/jobs?wait=10", [{"service": "noop"}] * 10)
    line = b'empd_jobs_total{cause="",outcome="completed",service="noop",status="completed"} 10.0'
    wait_until(lambda: line in ask(daemon, "GET", "/metrics").body, "ten jobs in the metrics")
    body = ask(daemon, "GET", "/metrics").body
    assert body.count(b"\nempd_jobs_total{") == 1  # what workers count are attempts
    for text in (b"empd_broker_up 1.0", b'empd_worker_state{kind="worker",state="ready"', b"empd_worker_rss_bytes{"):
        assert text in body
