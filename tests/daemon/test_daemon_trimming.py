"""Trimming under load: the journal stays bounded, and nothing that lives is lost by it, over kills and restarts."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from empd.broker.ledger import TRIM_START_BYTES
from tests.box import Box, noop_mapping, service, wait_until

PAYLOAD = {"body": b"x" * 16_000}
JOBS = 256
ROUNDS = 30  # 30 × 256 × 16 KB: 120 MB into a journal that is trimmed from 48 MiB on


@pytest.mark.timeout(180)
def test_the_journal_stays_bounded_and_loses_nothing(box: Callable[..., Box]) -> None:
    mapping = noop_mapping(instances=2)
    worker, entry = service(worker={"instances": 1}, api_config={"duration_s": 3600})
    mapping["workers"]["long"] = {"services": ["long"], **worker}
    mapping["services"]["long"] = entry
    mapping["services"]["noop"]["api_config"]["echo"] = False
    daemon = box(mapping, durability="os", drain_s=0.5)
    with daemon.client() as client:
        old = [client.submit("long", {}, labels={"n": str(n)}) for n in range(5)]
        later = client.submit("noop", {"late": 1}, not_before=time.time() + 3600)
        keyed = client.submit("noop", {"k": 1}, idempotency_key="old key")
        keyed.result(60)
        wait_until(lambda: old[0].status().state == "assigned", "the long job to run")
        epoch = old[0].status().epoch
        sizes = []
        for round_number in range(ROUNDS):
            results = list(client.submit_many("noop", [PAYLOAD] * JOBS).results(60))
            assert results == [{"steps": 1}] * JOBS
            sizes.append(client.status()["journal"]["size_bytes"])
            if round_number == ROUNDS // 2:
                daemon.signal("broker")

        def trimmed() -> bool:
            journal = client.status()["journal"]
            return bool(journal["trimmed_rows"]) and bool(journal["size_bytes"] < TRIM_START_BYTES + (16 << 20))

        wait_until(trimmed, "the journal to be trimmed")
        assert max(sizes) < 2 * TRIM_START_BYTES + (16 << 20), sizes
        assert old[0].status().epoch == epoch, "the holder kept its claim over the broker's death and the trims"
        daemon.kill()
        daemon.restart()
        wait_until(lambda: old[0].status().state == "assigned", "the long job to run again")
        assert [job.status().state for job in old[1:]] == ["waiting"] * 4
        assert [job.status().labels for job in old] == [{"n": str(n)} for n in range(5)]
        assert later.status().state == "delayed"
        again = client.submit("noop", {"k": 1}, idempotency_key="old key")
        again.result(60)
        assert again.id == keyed.id
        assert client.status()["jobs"]["unfinished"] == 6
