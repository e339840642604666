"""/v1/jobs: submit, look at, list, cancel, results; and what is said of bad requests."""

from __future__ import annotations

import json

import msgspec
import pytest
from web_broker import BrokerDouble
from web_harness import Web, wait_for

from empd.job import Outcome, format_id, parse_id
from empd.result import JobError, JobStatus
from empd.wire.codec import decode_options

HELD = {"service": "hold", "payload": 1}


def submit(web: Web, **job: object) -> str:
    answer = web.ask("POST", "/v1/jobs", {**HELD, **job})
    assert answer.status == 202, answer.body
    return str(answer.json()["id"])


def in_history(web: Web, broker: BrokerDouble, through_seq: int) -> None:
    wait_for(lambda: broker.acked.get("history", 0) >= through_seq, "history has the row")


def test_submit_answers_with_the_id_and_where_it_is(web: Web, broker: BrokerDouble) -> None:
    answer = web.ask("POST", "/v1/jobs", {"service": "hold", "payload": {"x": [1, 2.5, None]}, "labels": {"a": "b"}})
    assert answer.status == 202
    body = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{body['id']}"
    number = parse_id(body["id"])
    assert msgspec.msgpack.decode(broker.payloads[number]) == {"x": [1, 2.5, None]}
    assert decode_options(broker.options[number]).labels == {"a": "b"}


def test_submit_a_list_keeps_the_order_and_shares_options(web: Web, broker: BrokerDouble) -> None:
    jobs = [{"service": "hold", "payload": index, "priority": 70} for index in range(600)]
    answer = web.ask("POST", "/v1/jobs", jobs)
    assert answer.status == 202
    numbers = [parse_id(job["id"]) for job in answer.json()["jobs"]]
    assert [msgspec.msgpack.decode(broker.payloads[number]) for number in numbers] == list(range(600))
    assert numbers == sorted(numbers)


def test_wait_returns_the_result(module_web: Web) -> None:
    answer = module_web.ask("POST", "/v1/jobs?wait=5", {"service": "echo", "payload": {"x": 3}})
    assert answer.status == 200
    body = answer.json()
    assert (body["state"], body["result"], body["ended"]) == ("completed", {"x": 3}, True)
    assert body["submitted_at"].endswith("Z")


def test_wait_of_a_list_returns_all_results(module_web: Web) -> None:
    answer = module_web.ask("POST", "/v1/jobs?wait=5", [{"service": "echo", "payload": n} for n in range(5)])
    assert answer.status == 200
    assert [job["result"] for job in answer.json()["jobs"]] == [0, 1, 2, 3, 4]


def test_wait_that_runs_out_is_202_and_the_job_goes_on(web: Web, broker: BrokerDouble) -> None:
    answer = web.ask("POST", "/v1/jobs?wait=0.05", HELD)
    assert answer.status == 202
    assert parse_id(answer.json()["id"]) in broker.jobs


def test_refused_says_when_to_come_back(module_web: Web) -> None:
    answer = module_web.ask("POST", "/v1/jobs", {"service": "refuse"})
    assert answer.status == 503
    assert answer.headers["Retry-After"] == "7"
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert answer.json()["failure"] == "unavailable"


def test_unmatchable_is_422(module_web: Web) -> None:
    answer = module_web.ask("POST", "/v1/jobs", {"service": "unmatchable"})
    assert (answer.status, answer.json()["failure"]) == (422, "unmatchable")


def test_in_a_list_only_the_refused_ones_are_refused(module_web: Web) -> None:
    answer = module_web.ask("POST", "/v1/jobs", [HELD, {"service": "refuse"}])
    assert answer.status == 202
    accepted, refused = answer.json()["jobs"]
    assert "id" in accepted
    assert refused["error"]["failure"] == "unavailable"


def test_idempotency_key_from_header_and_body(web: Web, broker: BrokerDouble) -> None:
    one = web.ask("POST", "/v1/jobs", HELD, Idempotency_Key="abc").json()["id"]
    two = web.ask("POST", "/v1/jobs", {**HELD, "idempotency_key": "own"}, Idempotency_Key="abc").json()["id"]
    many = web.ask("POST", "/v1/jobs", [HELD, HELD], Idempotency_Key="abc").json()["jobs"]
    assert broker.keys[parse_id(one)] == "abc"
    assert broker.keys[parse_id(two)] == "own"
    assert [broker.keys[parse_id(job["id"])] for job in many] == ["abc/0", "abc/1"]


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b"", "$"),
        (b"{", "$"),
        (b"\xff\xfe\x00", "$"),
        (b"[]", "$"),
        (b'{"payload": 1}', "$"),
        (b'{"service": 5}', "$.service"),
        (b'{"service": "x", "priority": 101}', "$.priority"),
        (b'{"service": "x", "prioritty": 1}', "$"),
        (b'[{"service": "x"}, {"service": "x", "labels": {"a": 1}}]', "$[1].labels[...]"),
        (b'{"service": "x", "after": ["zz"]}', "$.after[0]"),
        (b'{"service": "x", "payload": {"blob": "zz"}}', "$.payload.blob"),
        (b'{"service": "x", "payload": {"blob": 5}}', "$.payload.blob"),
        (b'{"service": "x", "payload": ' + b"[" * 5000 + b"]" * 5000 + b"}", "$"),
        (b'{"service": "x", "payload": 123456789012345678901234567890}', "$.payload"),
    ],
)  # fmt: skip
def test_bad_body_is_400_with_the_key(module_web: Web, body: bytes, key: str) -> None:
    answer = module_web.ask("POST", "/v1/jobs", body)
    assert answer.status == 400, answer.body
    assert answer.json()["key"] == key
    assert answer.json()["failure"] == "invalid_input"


@pytest.mark.parametrize("wait", ["-1", "x", "1e9", "nan", ""])
def test_bad_wait_is_400(module_web: Web, wait: str) -> None:
    assert module_web.ask("POST", f"/v1/jobs?wait={wait}", HELD).status == 400


def test_show_asks_the_broker_first(web: Web, broker: BrokerDouble) -> None:
    name = submit(web)
    body = web.get(f"/v1/jobs/{name}")
    assert (body["state"], body["ended"], body["worker"]) == ("assigned", False, "gpu0")
    broker.finish(parse_id(name), Outcome.FAILED, None, JobError("timeout", "too slow", "last words"))
    body = web.get(f"/v1/jobs/{name}")
    assert (body["state"], body["ended"]) == ("failed", True)
    assert body["error"] == {"failure": "timeout", "message": "too slow", "evidence": "last words"}


def test_show_finds_in_history_what_the_broker_has_forgotten(web: Web, broker: BrokerDouble) -> None:
    name = submit(web, labels={"k": "v"}, customer_id="acme")
    in_history(web, broker, broker.finish(parse_id(name), result=msgspec.msgpack.encode({"y": 2})))
    broker.forget(parse_id(name))
    body = web.get(f"/v1/jobs/{name}")
    assert (body["state"], body["result"], body["worker"]) == ("completed", {"y": 2}, "gpu0")
    assert (body["labels"], body["customer_id"]) == ({"k": "v"}, "acme")


def test_show_finds_ended_jobs_while_the_broker_is_down(web: Web, broker: BrokerDouble) -> None:
    name = submit(web)
    in_history(web, broker, broker.finish(parse_id(name)))
    broker.stop()
    assert web.get(f"/v1/jobs/{name}")["state"] == "completed"
    assert web.ask("GET", f"/v1/jobs/{format_id(77)}").status == 503


def test_unknown_is_404_and_no_id_is_400(module_web: Web) -> None:
    assert module_web.ask("GET", f"/v1/jobs/{format_id(77)}").status == 404
    assert module_web.ask("GET", "/v1/jobs/nonsense").status == 400
    nowhere = module_web.ask("GET", "/v1/nowhere")
    assert (nowhere.status, "/openapi.json" in nowhere.json()["detail"]) == (404, True)
    answer = module_web.ask("PUT", "/v1/jobs")
    assert (answer.status, "POST" in answer.headers["Allow"]) == (405, True)


def test_past_retention_is_410(broker: BrokerDouble, start_web) -> None:
    web = start_web(history_keep_s=0.0, result_keep_s=0.0)
    name = submit(web)
    in_history(web, broker, broker.finish(parse_id(name)))
    broker.forget(parse_id(name))
    web.restart()  # the sweep runs at the start, then every half a minute
    answer = wait_for(lambda: (a := web.ask("GET", f"/v1/jobs/{name}")).status == 410 and a, "410")
    assert "expired_from_history" in answer.json()["detail"]


def test_cancel_is_idempotent(web: Web, broker: BrokerDouble) -> None:
    name = submit(web)
    for _ in range(2):
        answer = web.ask("DELETE", f"/v1/jobs/{name}")
        assert (answer.status, answer.json()["state"]) == (202, "cancelling")
    broker.finish(parse_id(name), Outcome.CANCELLED, None, JobError("cancelled", "as asked"))
    answer = web.ask("DELETE", f"/v1/jobs/{name}")
    assert (answer.status, answer.json()["state"]) == (200, "cancelled")
    assert web.ask("DELETE", f"/v1/jobs/{format_id(77)}").status == 404


def test_result_in_every_form(web: Web, broker: BrokerDouble) -> None:
    name = submit(web)
    assert web.ask("GET", f"/v1/jobs/{name}/result").status == 409
    packed = msgspec.msgpack.encode({"y": [1, b"\x00\x01"]})
    broker.finish(parse_id(name), result=packed)
    raw = web.ask("GET", f"/v1/jobs/{name}/result")
    assert (raw.headers["Content-Type"], raw.body) == ("application/msgpack", packed)
    shown = web.ask("GET", f"/v1/jobs/{name}/result", Accept="application/json")
    assert shown.json() == {"y": [1, {"$base64": "AAE="}]}
    part = web.ask("GET", f"/v1/jobs/{name}/result", Range="bytes=1-2")
    assert (part.status, part.body) == (206, packed[1:3])
    assert web.ask("GET", f"/v1/jobs/{name}/result", Range="bytes=999-").status == 416


def test_bytes_come_as_they_were_returned(module_web: Web) -> None:
    name = module_web.ask("POST", "/v1/jobs?wait=5", {"service": "echo", "payload": "text"}).json()["id"]
    assert module_web.ask("GET", f"/v1/jobs/{name}/result").body == msgspec.msgpack.encode("text")
    assert module_web.ask("GET", f"/v1/jobs/{name}/result", Accept="application/json").body == b'"text"'


def test_result_of_a_failed_job_is_404_with_the_error(web: Web, broker: BrokerDouble) -> None:
    name = submit(web)
    broker.finish(parse_id(name), Outcome.DEAD, None, JobError("worker_crashed", "signal 11"))
    answer = web.ask("GET", f"/v1/jobs/{name}/result")
    assert (answer.status, answer.json()["error"]["failure"]) == (404, "worker_crashed")


def test_result_that_is_no_msgpack_never_breaks_the_answer(web: Web, broker: BrokerDouble) -> None:
    name = submit(web)
    broker.finish(parse_id(name), result=b"\xc1\xff")
    assert web.get(f"/v1/jobs/{name}")["result"] == {"$base64": "wf8="}


# --- lists -----------------------------------------------------------------------------------------------------------


def pages(web: Web, query: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    cursor = ""
    for _ in range(100):
        body = web.get(f"/v1/jobs?{query}{cursor}")
        found += body["jobs"]
        if body["cursor"] is None:
            return found
        cursor = f"&cursor={body['cursor']}"
    raise AssertionError("the pages do not end")


def test_list_merges_unfinished_and_ended(web: Web, broker: BrokerDouble) -> None:
    running = [submit(web) for _ in range(5)]
    ended = [submit(web, labels={"n": str(n)}) for n in range(7)]
    for name in ended:
        seq = broker.finish(parse_id(name))
    in_history(web, broker, seq)
    found = pages(web, "limit=2")
    assert [job["id"] for job in found] == running + ended[::-1]
    assert len(pages(web, "limit=100")) == 12
    assert [job["id"] for job in pages(web, "state=assigned&limit=3")] == running
    assert [job["id"] for job in pages(web, "state=completed&limit=3")] == ended[::-1]
    assert [job["id"] for job in pages(web, "label.n=3")][-1] == ended[3]
    assert pages(web, "service=other") == []
    assert pages(web, "state=failed,expired") == []


def test_list_shows_history_while_the_broker_is_down(web: Web, broker: BrokerDouble) -> None:
    name = submit(web)
    in_history(web, broker, broker.finish(parse_id(name)))
    broker.stop()
    body = web.get("/v1/jobs")
    assert [job["id"] for job in body["jobs"]] == [name]
    assert "does not answer" in body["broker_error"]


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=99999", "state=gone", "cursor=zz", "cursor=b", "foo=1"])
def test_bad_filter_is_400_with_its_name(module_web: Web, query: str) -> None:
    answer = module_web.ask("GET", f"/v1/jobs?{query}")
    assert answer.status == 400
    assert answer.json()["key"] == f"query.{query.partition('=')[0]}"


def test_list_takes_the_brokers_own_form(web: Web, broker: BrokerDouble) -> None:
    broker.jobs[5] = JobStatus(5, "waiting", "hold", reason="no worker is free")
    [job] = web.get("/v1/jobs")["jobs"]
    assert (job["id"], job["state"], job["reason"]) == (format_id(5), "waiting", "no worker is free")
    assert json.dumps(job)
