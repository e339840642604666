"""Logger, metrics, endpoints, redaction: what every connector has without writing a line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from test_connectors_seam import context_of

from empd.connectors.base import ConnectorConfig, Service, Site
from empd.connectors.endpoints import Defaults, Endpoints, default_url, fixed_url
from empd.connectors.failures import RateLimited
from empd.connectors.logger import ConnectorLogger, ServiceLog
from empd.connectors.meters import Meters
from empd.connectors.redaction import PASSING_MAX, Redaction, secrets_in, without_secrets

# --- logger ----------------------------------------------------------------------------------------------------------


def logger(least: str = "debug") -> tuple[ConnectorLogger, list[dict[str, Any]]]:
    records: list[dict[str, Any]] = []
    return ConnectorLogger.to(records.append, least, machine="box", worker="gpu0"), records


class EchoLog(ServiceLog):
    schema = "echo"
    prompt_id: str = ""
    vram_usage: float = 0.0


class Echo(Service):
    connector_id = "echo"
    service_type = "echo"
    protocol = "http"


def test_every_record_says_where_it_comes_from() -> None:
    log, records = logger()
    connector = Echo(ConnectorConfig(), Site(service="draw", logger=log))
    context = context_of(1)
    of_job = connector.log.with_job(context)
    of_job.job_received(17)
    of_job.job_started()
    of_job.job_progress(0.5, "half")
    of_job.job_completed(1.25, tokens=3)
    of_job.job_failed(RateLimited("later"), 0.5)
    connector.log.health_check(False, "no answer")
    connector.log.service_event("restarted", "warning", pid=7)
    connector.log.service(EchoLog(prompt_id="p1", vram_usage=0.5))
    assert [record["event"] for record in records] == [
        "job_received",
        "job_started",
        "job_progress",
        "job_completed",
        "job_failed",
        "health_check",
        "service_restarted",
        "service_report",
    ]
    for record in records:
        assert record["timestamp"].endswith("Z")
        shared = {key: record[key] for key in ("machine", "worker", "service", "connector", "protocol", "service_type")}
        assert shared == {
            "machine": "box", "worker": "gpu0", "service": "draw", "connector": "echo", "protocol": "http",
            "service_type": "echo",
        }  # fmt: skip
    assert {record.get("job") for record in records[:5]} == {"0000000000001"}
    assert records[4]["failure"] == "rate_limited"
    assert (records[7]["schema"], records[7]["prompt_id"], records[7]["vram_usage"]) == ("echo", "p1", 0.5)


def test_records_below_the_level_are_not_made() -> None:
    log, records = logger("warning")
    log.debug("a")
    log.info("b")
    log.with_job(context_of(1)).job_completed(1.0)
    log.warning("c")
    assert [(record["level"], record["event"]) for record in records] == [("warning", "c")]


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_instruments_are_counted_once_for_each_name_and_labels() -> None:
    meters = Meters()
    for _ in range(3):
        meters.counter("hits_total", {"kind": "a"}).inc()
    meters.counter("empd_hits_total", {"kind": "b"}).inc(2)
    meters.gauge("depth").set(4)
    meters.gauge("depth").inc(-1)
    meters.histogram("wait_seconds").observe(0.3)
    found = {(each.name, *each.labels.values()): each for each in meters.series()}
    assert found["empd_hits_total", "a"].value == 3
    assert found["empd_hits_total", "b"].value == 2
    assert found["empd_depth",].value == 3
    spread = dict(found["empd_wait_seconds",].buckets)
    assert (spread[0.1], spread[0.5], spread[float("inf")]) == (0, 1, 1)


@pytest.mark.parametrize(("name", "labels"), [("Bad-Name", {}), ("good", {"service": "x"}), ("good", {"Le": "x"})])
def test_what_no_metric_can_be_is_refused(name: str, labels: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"label|name"):
        Meters().counter(name, labels)


def test_a_name_has_one_kind() -> None:
    meters = Meters()
    meters.counter("x", {"a": "1"})
    with pytest.raises(ValueError, match="is a counter already"):
        meters.gauge("x")
    with pytest.raises(ValueError, match="is a counter already"):
        meters.gauge("x", {"a": "1"})


def test_series_are_bounded() -> None:
    meters = Meters(series_max=5)
    for number in range(20):
        meters.counter("x_total", {"id": str(number)}).inc()
    assert len(list(meters.series())) == 5
    assert meters.dropped == 15


# --- endpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "environ", "url"),
    [
        ({"base_port": 8188}, {}, "http://127.0.0.1:8191"),
        ({"base_port": 8188, "host": "::1"}, {}, "http://[::1]:8191"),
        ({"base_url": "https://api.example/v1/"}, {}, "https://api.example/v1"),
        ({"base_port": 8188}, {"COMFY_UI_BASE_PORT": "9000"}, "http://127.0.0.1:9003"),
        ({"base_url": "https://mapping"}, {"COMFY_UI_BASE_URL": "http://environment"}, "http://environment"),
        ({}, {}, ""),
    ],
)
def test_each_gpu_has_an_address_of_its_own(config: dict[str, Any], environ: dict[str, str], url: str) -> None:
    assert fixed_url("comfy-ui", 3, config, environ) == url


def test_a_wrong_port_is_named() -> None:
    with pytest.raises(ValueError, match="api_config: 'x' is no port"):
        fixed_url("s", 0, {"base_port": "x"}, {})


def test_the_registry_stands_between_the_mapping_and_the_default() -> None:
    registered = ["http://registered"]
    default = default_url(Defaults(base_port=7860), 1)
    assert Endpoints("http://mapping", lambda: registered[0], default).url == "http://mapping"
    endpoints = Endpoints("", lambda: registered[0], default)
    assert Site(endpoints=endpoints).endpoint == "http://registered"
    registered[0] = ""
    assert Site(endpoints=endpoints).endpoint == "http://127.0.0.1:7861"


# --- redaction -------------------------------------------------------------------------------------------------------

CONFIG = {
    "base_url": "https://u:hunter22@api.example",
    "api_key": "sk-123456",
    "headers": {"Authorization": "Bearer abcdef", "Accept": "json"},
    "max_tokens": "4000",
    "max_token": 4000,
    "oauth": {"client_secret": "s3cret!!", "token_url": "https://login.example"},
}


def test_secrets_of_a_configuration_are_found_and_hidden() -> None:
    assert set(secrets_in(CONFIG)) == {"sk-123456", "Bearer abcdef", "s3cret!!"}
    redact = Redaction()
    redact.learn(["hunter22"])
    shown = without_secrets(CONFIG, redact)
    assert shown["base_url"] == "https://u:***@api.example"
    assert shown["headers"] == {"Authorization": "***", "Accept": "json"}
    assert shown["oauth"] == {"client_secret": "***", "token_url": "https://login.example"}
    assert (shown["api_key"], shown["max_tokens"], shown["max_token"]) == ("***", "4000", 4000)


def test_tokens_that_pass_are_hidden_told_on_and_not_kept_for_ever() -> None:
    told: list[str] = []
    redact = Redaction(told.extend)
    redact.learn(["lasting-secret"])
    for number in range(1000):
        redact.learn_passing([f"token-{number:04}", "refresh-token"])
        assert redact(f"a token-{number:04} b refresh-token lasting-secret") == "a *** b *** ***"
        assert len(redact._secrets) <= PASSING_MAX + 1
    assert set(told) == {"refresh-token", *(f"token-{number:04}" for number in range(1000))}
    assert redact("token-0000") == "token-0000"


@given(st.text(min_size=4), st.text(), st.text())
def test_no_learned_secret_is_left_in_a_line_of_json(secret: str, before: str, after: str) -> None:
    assume("*" not in secret)
    redact = Redaction()
    redact.learn([secret])
    for ensure_ascii in (True, False):
        line = redact(json.dumps({"m": before + secret + after}, ensure_ascii=ensure_ascii))
        assert json.dumps(secret, ensure_ascii=ensure_ascii)[1:-1] not in line
