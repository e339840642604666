"""Sessions on the wire: handshake, resumption, submission under frame numbers, idempotency keys."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from broker_process import RawBroker, RawClient, group

from empd.errors import FailureClass
from empd.wire import frames


def test_a_handshake_gives_a_session_of_its_own(broker: RawBroker) -> None:
    first, second = broker.client().welcome, broker.client().welcome
    assert first is not None
    assert second is not None
    assert first.session != second.session
    assert first.token != second.token
    assert first.frame_number == 0
    assert first.next_job == 1
    assert first.instance == second.instance
    assert first.frame_bytes_max == 1 << 20


def test_a_frame_before_the_handshake_is_an_error_that_says_so(broker: RawBroker) -> None:
    client = broker.client(hello=False)
    client.say(frames.Status(5))
    error = client.hear(frames.Error, request=5)
    assert error.failure == FailureClass.REFUSED
    assert "ClientHello" in error.message
    client.hello()
    assert client.ask(frames.Status)["boot"] == 1


def test_another_protocol_version_is_named(broker: RawBroker) -> None:
    client = broker.client(hello=False)
    client.say(frames.ClientHello(99))
    assert "protocol 99 is not spoken here" in client.hear(frames.Error).message


def test_a_session_is_resumed_with_its_token_even_by_another_broker(broker: RawBroker) -> None:
    client = broker.client()
    client.accepted(group(b"\xc0", b"\xc0"))
    welcome = client.welcome
    assert welcome is not None
    broker.restart()
    again = RawClient(broker.context, broker.clients_endpoint)
    resumed = again.hello(welcome.session, welcome.token)
    again.close()
    assert (resumed.session, resumed.frame_number, resumed.next_job) == (welcome.session, 1, 3)
    assert resumed.boot == welcome.boot + 1
    assert resumed.instance == welcome.instance


@pytest.mark.parametrize("token", [b"", b"x" * 16, b"y" * 4096])
def test_a_wrong_token_gets_another_session(broker: RawBroker, token: bytes) -> None:
    welcome = broker.client().welcome
    assert welcome is not None
    thief = broker.client(hello=False)
    assert thief.hello(welcome.session, token).session != welcome.session


def test_results_go_to_the_connection_that_resumed_last(broker: RawBroker) -> None:
    old = broker.client()
    [job_id] = old.accepted(group(b"\xc0"))
    assert old.welcome is not None
    new = broker.client(hello=False)
    new.hello(old.welcome.session, old.welcome.token)
    worker = broker.worker()
    worker.complete(worker.claim())
    assert new.result(job_id).outcome == 0
    assert old.told() == []


def test_a_submit_frame_sent_twice_is_one(broker: RawBroker) -> None:
    client = broker.client()
    ids = client.accepted(group(b"\xc0", b"\xc0", b"\xc0"))
    again = frames.Submit(1, 1, [group(b"\xc0", b"\xc0", b"\xc0")])
    for _ in range(3):
        client.say(again)
        assert client.hear(frames.Accepted, number=1).refused == []
    assert client.ask(frames.Status)["jobs"]["unfinished"] == 3
    broker.restart()
    client.hello(client.welcome.session, client.welcome.token)  # type: ignore[union-attr]
    client.say(again)
    client.hear(frames.Accepted, number=1)
    assert client.ask(frames.Status)["jobs"]["unfinished"] == 3
    assert [client.state_of(job_id) for job_id in ids] == ["waiting"] * 3


def test_a_duplicate_after_the_job_ended_does_not_run_it_again(broker: RawBroker) -> None:
    client, worker = broker.client(), broker.worker()
    [job_id] = client.accepted(group(b"\xc0"))
    worker.complete(worker.claim())
    client.result(job_id)
    client.say(frames.Submit(1, 1, [group(b"\xc0")]))
    client.hear(frames.Accepted, number=1)
    assert client.ask(frames.Status)["jobs"]["unfinished"] == 0
    assert not [frame for frame in worker.take() if type(frame) is frames.Assign]


def test_refused_jobs_are_told_again_and_the_others_are_in(broker: RawBroker) -> None:
    client = broker.client()
    mixed = [group(b"\xc0"), group(b"\xc0", service="nobody"), group(b"\xc0", priority=40)]
    client.submit(*mixed)
    answer = client.hear(frames.Accepted, number=1)
    assert [(refusal.index, refusal.failure) for refusal in answer.refused] == [(1, FailureClass.UNMATCHABLE)]
    client.say(frames.Submit(1, 1, mixed))
    assert client.hear(frames.Accepted, number=1).refused == answer.refused
    broker.restart()
    client.hello(client.welcome.session, client.welcome.token)  # type: ignore[union-attr]
    client.say(frames.Submit(1, 1, mixed))
    assert client.hear(frames.Accepted, number=1).refused == answer.refused
    assert client.ask(frames.Status)["jobs"]["unfinished"] == 2


def test_a_frame_refused_whole_keeps_its_answer_when_the_next_one_is_in(broker: RawBroker) -> None:
    client = broker.client()
    wrong = [group(b"\xc0", b"\xc0", service="nobody")]
    client.submit(*wrong)
    refused = client.hear(frames.Accepted, number=1).refused
    assert len(refused) == 2
    client.say(frames.Submit(1, 1, wrong))
    assert client.hear(frames.Accepted, number=1).refused == refused
    client.accepted(group(b"\xc0"))
    broker.restart()
    client.hello(client.welcome.session, client.welcome.token)  # type: ignore[union-attr]
    client.say(frames.Submit(1, 1, wrong))
    assert client.hear(frames.Accepted, number=1).refused == refused
    assert client.ask(frames.Status)["jobs"]["unfinished"] == 1


def test_jobs_of_a_full_queue_can_be_sent_again_under_another_number(make_broker: Callable[..., RawBroker]) -> None:
    broker = make_broker(queue_jobs_max=2)
    client = broker.client()
    ids = client.accepted(group(b"\xc0", b"\xc0"))
    client.submit(group(b"\x01"))
    [refusal] = client.hear(frames.Accepted, number=2).refused
    assert refusal.failure == FailureClass.UNAVAILABLE
    assert refusal.retry_after_s is not None
    assert refusal.retry_after_s > 0
    assert "queue_jobs_max" in refusal.reason
    client.ask(frames.Cancel, [ids[0]])
    [late] = client.accepted(group(b"\x01"))
    assert client.state_of(late) == "waiting"


def test_a_gap_in_job_numbers_is_taken_and_a_step_back_is_refused(broker: RawBroker) -> None:
    client = broker.client()
    client.next_job = 100
    [job_id] = client.accepted(group(b"\xc0"))
    assert job_id & 0xFFFFFFFF == 100
    client.say(frames.Submit(2, 50, [group(b"\xc0")]))
    assert "jobs start at 50" in client.hear(frames.Error).message
    client.say(frames.Submit(2, 101, [group(b"\xc0")]))
    assert client.hear(frames.Accepted, number=2).refused == []


@pytest.mark.parametrize("first", [0, -1, -(1 << 40), 1 << 32, (1 << 63) - 1, (1 << 64) - 1])
def test_job_numbers_outside_the_id_are_refused(broker: RawBroker, first: int) -> None:
    client = broker.client()
    client.say(frames.Submit(1, first, [group(b"\xc0")]))
    client.hear(frames.Error)
    client.accepted(group(b"\xc0"))


@pytest.mark.parametrize("number", [0, -1, -(1 << 62)])
def test_frame_numbers_below_one_take_nothing(broker: RawBroker, number: int) -> None:
    client = broker.client()
    client.say(frames.Submit(number, 1, [group(b"\xc0")]))
    assert client.ask(frames.Status)["jobs"]["unfinished"] == 0


def test_a_key_names_one_job(broker: RawBroker) -> None:
    client = broker.client()
    [job_id] = client.accepted(group(b"\x01", keys=["k"]))
    client.submit(group(b"\x01", keys=["k"]))
    assert client.hear(frames.Accepted, number=2).existing == [(0, job_id)]
    client.submit(group(b"\x02", keys=["k"]))
    [refusal] = client.hear(frames.Accepted, number=3).refused
    assert refusal.failure == FailureClass.REFUSED
    assert "another payload" in refusal.reason
    other = broker.client()
    other.submit(group(b"\x01", keys=["k"]))
    assert other.hear(frames.Accepted, number=1).existing == [(0, job_id)]
    assert client.ask(frames.Status)["jobs"]["unfinished"] == 1


def test_a_key_outlives_its_job_and_the_broker(broker: RawBroker) -> None:
    client, worker = broker.client(), broker.worker()
    [job_id] = client.accepted(group(b"\x01", keys=["k"]))
    worker.complete(worker.claim())
    client.result(job_id)
    broker.restart()
    other = broker.client()
    other.submit(group(b"\x01", keys=["k"]))
    assert other.hear(frames.Accepted, number=1).existing == [(0, job_id)]
    other.submit(group(b"\x02", keys=["k"]))
    assert other.hear(frames.Accepted, number=2).refused[0].failure == FailureClass.REFUSED
    other.submit(group(b"\x01", keys=["k"], service="other"))
    assert other.hear(frames.Accepted, number=3).refused[0].failure == FailureClass.REFUSED
    assert other.ask(frames.Status)["jobs"]["unfinished"] == 0


def test_a_key_twice_in_one_frame_is_one_job_and_a_refusal(broker: RawBroker) -> None:
    client = broker.client()
    client.submit(group(b"\x01", b"\x01", b"\x03", keys=["k", "k", ""]))
    answer = client.hear(frames.Accepted, number=1)
    assert [refusal.index for refusal in answer.refused] == [1]
    assert client.ask(frames.Status)["jobs"]["unfinished"] == 2


def test_keys_that_are_no_match_for_payloads_are_an_error(broker: RawBroker) -> None:
    client = broker.client()
    client.say(frames.Submit(1, 1, [group(b"\x01", b"\x02", keys=["k"])]))
    assert "keys" in client.hear(frames.Error).message
    client.say(frames.Submit(1, 1, [group(b"\x01", keys=["k" * 5000])]))
    assert "characters" in client.hear(frames.Accepted, number=1).refused[0].reason


def test_a_full_table_of_keys_refuses_and_forgets_none(make_broker: Callable[..., RawBroker]) -> None:
    broker = make_broker(idempotency_keys_max=2)
    client = broker.client()
    [one] = client.accepted(group(b"\x01", keys=["a"]))
    client.accepted(group(b"\x01", keys=["b"]))
    client.submit(group(b"\x01", keys=["c"]))
    assert "idempotency_keys_max" in client.hear(frames.Accepted, number=3).refused[0].reason
    client.submit(group(b"\x01", keys=["a"]))
    answer = client.hear(frames.Accepted, number=4)
    assert answer.existing == [(0, one)], "a key that is known needs no room in the table"


def test_bye_ends_the_conversation_and_the_jobs_go_on(broker: RawBroker) -> None:
    client = broker.client()
    [job_id] = client.accepted(group(b"\xc0"))
    client.say(frames.Bye(), frames.Status(9))
    assert client.hear(frames.Error, request=9).failure == FailureClass.REFUSED
    worker = broker.worker()
    worker.complete(worker.claim())
    other = broker.client()
    other.ask(frames.Ask, [job_id], answer=frames.States)
    assert other.result(job_id).outcome == 0
