"""The restart table: every sequence of events, and what it promises about waits, budgets and goals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from empd.clock import NS_PER_S
from empd.supervisor.restart import LIVE, Action, Event, Goal, Life, Policy, State, step

POLICY = Policy(budget=3, window_s=60.0, backoff_first_s=0.5, backoff_max_s=4.0, open_s=10.0, open_max_s=80.0)
UP = Life(goal=Goal.UP)
EXITS = (Event.EXITED_CLEAN, Event.EXITED_BAD)


def live(*events: Event, life: Life = UP, now_ns: int = 0) -> Life:
    for event in events:
        life, _ = step(life, event, POLICY, now_ns, 0.0)
    return life


def fail(life: Life, now_ns: int) -> Life:
    """A failure of whatever runs; waits that come of it are waited for."""
    life, _ = step(life, Event.EXITED_BAD, POLICY, now_ns, 0.0)
    return life


def test_first_restart_is_at_once_and_later_ones_wait_longer_each_time():
    life = live(Event.START, Event.READY)
    life, action = step(life, Event.EXITED_BAD, POLICY, 0, 0.0)
    assert (life.state, action) == (State.STARTING, Action.SPAWN)
    waits = []
    for _ in range(2):
        life = fail(life, 0)
        assert life.state is State.BACKOFF
        waits.append(life.until_ns / NS_PER_S)
        life = live(Event.TIMER, life=life)
    assert waits == [0.5, 1.0]


def test_budget_opens_the_circuit_and_a_probe_that_fails_waits_twice_as_long():
    life = live(Event.START)
    while life.state is not State.OPEN:
        life = fail(life, 0)
        if life.state is State.BACKOFF:
            life = live(Event.TIMER, life=life)
    assert len(life.failures) == POLICY.budget + 1
    waits = []
    for _ in range(5):
        waits.append(life.until_ns / NS_PER_S)
        life, action = step(life, Event.TIMER, POLICY, 0, 0.0)
        assert (life.state, action) == (State.HALF_OPEN, Action.SPAWN)
        life = fail(life, 0)
        assert life.state is State.OPEN
    assert waits == [10.0, 20.0, 40.0, 80.0, 80.0]


def test_a_probe_that_fails_late_opens_the_circuit_again():
    life = Life(State.HALF_OPEN, Goal.UP, failures=(1, 2, 3, 4), streak=4, opens=1)
    life = live(Event.READY, life=life)
    late_ns = int(10 * POLICY.window_s * NS_PER_S)
    assert fail(life, late_ns).state is State.OPEN


def test_being_healthy_clears_the_budget():
    life = Life(State.READY, Goal.UP, until_ns=5, failures=(1, 2, 3), streak=3, opens=2)
    life = live(Event.TIMER, life=life)
    assert life == Life(State.READY, Goal.UP)
    assert fail(life, 10).state is State.STARTING


@pytest.mark.parametrize("state", [State.READY, State.DRAINING, State.KILLING])
def test_a_life_in_which_a_job_was_done_leaves_a_clean_slate(state: State):
    life = Life(state, Goal.UP, until_ns=5, failures=(1, 2, 3), streak=3, opens=2)
    life = live(Event.WORKED, life=life)
    assert life == Life(state, Goal.UP, until_ns=5)


@pytest.mark.parametrize("state", [State.STARTING, State.HALF_OPEN])
def test_who_never_was_ready_has_done_nothing(state: State):
    life = Life(state, Goal.UP, failures=(1, 2, 3), streak=3, opens=2)
    assert live(Event.WORKED, life=life) == life


def test_old_failures_leave_the_window():
    life = live(Event.START)
    for index in range(20):
        life = fail(life, index * 61 * NS_PER_S)
        if life.state is State.BACKOFF:
            life = live(Event.TIMER, life=life)
        assert life.state is State.STARTING
        assert len(life.failures) == 1


@pytest.mark.parametrize("leave", [Event.DRAIN, Event.STOP, Event.RECYCLE])
def test_drain_stop_and_recycle_are_no_failures(leave: Event):
    life = live(Event.START, Event.READY)
    for _ in range(50):
        life, action = step(live(leave, life=life), Event.EXITED_CLEAN, POLICY, 0, 0.0)
        assert (life.state, action) == (State.STARTING, Action.SPAWN)
        life = live(Event.READY, life=life)
    assert (life.failures, life.streak) == ((), 0)


def test_a_recycling_child_has_all_the_time_it_needs_but_can_still_be_told_to_go():
    life = live(Event.START, Event.READY, Event.RECYCLE)
    assert (life.state, life.until_ns) == (State.RECYCLING, 0)
    assert live(Event.DRAIN, life=life).state is State.DRAINING
    assert live(Event.STOP, life=life).state is State.STOPPING
    assert live(Event.HANG, life=life).state is State.DUMPING
    assert len(fail(life, 0).failures) == 1


@pytest.mark.parametrize(("event", "counted"), [(Event.HANG, 1), (Event.KILL, 0)])
def test_the_ladder_is_climbed_in_order_and_charged_by_its_cause(event: Event, counted: int):
    life = live(Event.START, Event.READY)
    actions = []
    for climb in (event, Event.TIMER, Event.TIMER, Event.TIMER):
        life, action = step(life, climb, POLICY, 0, 0.0)
        actions.append(action)
    assert actions == [Action.DUMP, Action.TERM, Action.KILL, Action.KILL]
    life, action = step(life, Event.EXITED_BAD, POLICY, 0, 0.0)
    assert (life.state, action, len(life.failures)) == (State.STARTING, Action.SPAWN, counted)
    assert not life.blamed


def test_a_child_that_is_never_ready_climbs_the_ladder_and_is_blamed():
    life = live(Event.START, Event.TIMER)
    assert (life.state, life.blamed) == (State.DUMPING, True)
    assert len(fail(life, 0).failures) == 1


def test_a_drain_past_its_limit_is_stopped_then_killed_uncharged():
    life = live(Event.START, Event.READY, Event.DRAIN)
    seen = []
    for _ in range(4):
        life, action = step(life, Event.TIMER, POLICY, 0, 0.0)
        seen.append(action)
    assert seen == [Action.SEND_STOP, Action.DUMP, Action.TERM, Action.KILL]
    assert fail(life, 0).failures == ()


@pytest.mark.parametrize("state", sorted(LIVE))
@pytest.mark.parametrize("event", EXITS)
def test_an_exit_settles_every_live_state(state: State, event: Event):
    down, action = step(Life(state, Goal.DOWN), event, POLICY, 0, 0.0)
    assert (down, action) == (Life(), Action.NONE)
    up, action = step(Life(state, Goal.UP), event, POLICY, 0, 0.0)
    assert (up.state, action) == (State.STARTING, Action.SPAWN)


@pytest.mark.parametrize("state", sorted(LIVE - {State.KILLING}))
def test_now_kills_whatever_lives(state: State):
    life, action = step(Life(state, Goal.DOWN), Event.NOW, POLICY, 0, 0.0)
    assert (life.state, action) == (State.KILLING, Action.KILL)


@given(
    events=st.lists(
        st.tuples(st.sampled_from(Event), st.integers(0, 100 * NS_PER_S), st.floats(0, 1, exclude_max=True))
    ),
    goals=st.lists(st.sampled_from(Goal)),
)
def test_whatever_happens_the_table_keeps_its_promises(events, goals):
    life, now_ns = Life(goal=Goal.UP), 0
    wanted = iter(goals)
    for event, later_ns, chance in events:
        now_ns += later_ns
        life = life._replace(goal=next(wanted, life.goal))
        before = life
        life, action = step(life, event, POLICY, now_ns, chance)
        # A process is started from where there is none (or it has just exited), and only then.
        starts = life.state in (State.STARTING, State.HALF_OPEN) and (before.state not in LIVE or event in EXITS)
        assert (action is Action.SPAWN) == starts
        # A wait without a process always ends; every state that can hang has a timer.
        if life.state not in (State.DOWN, State.READY, State.RECYCLING):
            assert life.until_ns >= now_ns or (before.state, before.until_ns) == (life.state, life.until_ns)
        # Nobody who is not wanted is started after having left.
        if event in EXITS and before.state in LIVE and before.goal is Goal.DOWN:
            assert life.state is State.DOWN
        # A child that is wanted is never given up.
        if before.goal is Goal.UP and before.state is not State.DOWN:
            assert life.state is not State.DOWN
        assert len(life.failures) <= POLICY.budget + 1
        assert life.goal is before.goal


@given(streak=st.integers(1, 10**6), opens=st.integers(0, 10**6), chance=st.floats(0, 1, exclude_max=True))
def test_waits_stay_within_their_bounds(streak: int, opens: int, chance: float):
    life, _ = step(Life(State.READY, Goal.UP, streak=streak, opens=opens), Event.EXITED_BAD, POLICY, 0, chance)
    longest_s = POLICY.open_max_s if opens else POLICY.backoff_max_s
    shortest_s = POLICY.open_s if opens else POLICY.backoff_first_s
    assert shortest_s * (1 - POLICY.jitter_share) * NS_PER_S <= life.until_ns + 1
    assert life.until_ns <= longest_s * NS_PER_S


def test_jitter_spreads_the_waits():
    failing = Life(State.READY, Goal.UP, streak=5)
    waits = {step(failing, Event.EXITED_BAD, POLICY, 0, chance / 10)[0].until_ns for chance in range(10)}
    assert len(waits) == 10
