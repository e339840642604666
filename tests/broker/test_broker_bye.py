"""Sessions that are left for good, and what keeps one."""

from __future__ import annotations

from broker_process import RawBroker, RawClient, group

from empd.wire import frames


def resumed(broker: RawBroker, client: RawClient) -> bool:
    """Whether the session of a client that is gone can still be gone on with."""
    left = client.welcome
    assert left is not None
    again = RawClient(broker.context, broker.clients_endpoint)
    welcome = again.hello(left.session, left.token)
    again.close()
    return welcome.session == left.session


def leave(client: RawClient, *, forget: bool) -> None:
    """Says good-bye; returns when the broker has read it."""
    client.say(frames.Bye(forget), frames.Status(9))
    assert "ClientHello" in client.hear(frames.Error, request=9).message


def test_a_session_with_nothing_open_is_forgotten_when_its_client_says_so(broker: RawBroker) -> None:
    client = broker.client()
    leave(client, forget=True)
    assert not resumed(broker, client)
    broker.restart()
    assert not resumed(broker, client)  # it was a fact


def test_a_session_is_kept_for_who_only_leaves(broker: RawBroker) -> None:
    client = broker.client()
    leave(client, forget=False)
    assert resumed(broker, client)


def test_a_session_with_open_jobs_is_kept_whatever_its_client_says(broker: RawBroker) -> None:
    client = broker.client()
    [job] = client.accepted(group(b"\xc0"))
    leave(client, forget=True)
    assert resumed(broker, client)
    assert broker.client().state_of(job) == "waiting"


def test_a_forgotten_sessions_number_is_not_given_again(broker: RawBroker) -> None:
    numbers = []
    for _ in range(3):
        client = broker.client()
        assert client.welcome is not None
        numbers.append(client.welcome.session)
        leave(client, forget=True)
    broker.restart()
    last = broker.client().welcome
    assert last is not None
    assert len({*numbers, last.session}) == 4
