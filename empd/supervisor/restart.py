"""What happens to a child next: state × event → action, as one table, and one pure function that reads it.

            START            READY                TIMER (not ready in time)
    DOWN ─────────▶ STARTING ─────▶ READY      STARTING ──▶ DUMPING
                       ▲              │ exits by itself
          TIMER        │ first time   ▼
    BACKOFF ───────────┴────────── (failed) ── budget spent ──▶ OPEN ── TIMER ──▶ HALF_OPEN ── READY ──▶ READY
                                                                 ▲                    │ exits
                                                                 └────────────────────┘ with a longer wait

    any process:  DRAIN ▶ DRAINING ─ limit ▶ STOPPING ─ limit ▶ DUMPING ─ gap ▶ TERMINATING ─ grace ▶ KILLING
                  (HANG and KILL enter at DUMPING, NOW at KILLING; each state falls to its exit event;
                  RECYCLE ▶ RECYCLING is a drain that the child began itself, without a limit)

What is wanted (`Goal`) is kept apart from what is (`State`): the same exit from DRAINING leads to a replacement
when the child is wanted and to DOWN when it is not. Time and chance are arguments.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from empd.clock import seconds_to_ns


class Goal(enum.IntEnum):
    """What is wanted of a child."""

    DOWN = 0
    UP = 1


class State(enum.IntEnum):
    """What a child is."""

    DOWN = 0
    STARTING = 1
    READY = 2
    DRAINING = 3
    STOPPING = 4
    DUMPING = 5
    TERMINATING = 6
    KILLING = 7
    BACKOFF = 8
    OPEN = 9
    HALF_OPEN = 10
    RECYCLING = 11  # leaves by itself, however long what runs in it still takes


class Event(enum.IntEnum):
    """What can happen to a child."""

    START = 0
    READY = 1
    EXITED_CLEAN = 2
    EXITED_BAD = 3
    TIMER = 4
    DRAIN = 5
    STOP = 6
    RECYCLE = 7  # the child will return by itself and wants to be replaced
    HANG = 8  # no heartbeat: the child's own failure
    KILL = 9  # the broker condemned it (a job ran too long): not the child's failure
    NOW = 10
    WORKED = 11  # told at its death: a job of this life came to its result


class Action(enum.IntEnum):
    """What the shell does about it."""

    NONE = 0
    SPAWN = 1
    SEND_DRAIN = 2
    SEND_STOP = 3
    DUMP = 4  # SIGUSR1: stacks into the evidence
    TERM = 5
    KILL = 6  # the whole tree


# A child has a process in these states.
LIVE = frozenset(
    {
        State.STARTING,
        State.HALF_OPEN,
        State.READY,
        State.RECYCLING,
        State.DRAINING,
        State.STOPPING,
        State.DUMPING,
        State.TERMINATING,
        State.KILLING,
    }
)
# … and in these it has been told to go.
LEAVING = frozenset({State.RECYCLING, State.DRAINING, State.STOPPING, State.DUMPING, State.TERMINATING, State.KILLING})


class Policy(NamedTuple):
    """One child kind's limits, in seconds."""

    start_s: float = 20.0
    healthy_s: float = 5.0  # READY this long clears the budget
    drain_s: float = 30.0
    stop_s: float = 5.0
    dump_gap_s: float = 0.5
    term_grace_s: float = 5.0
    kill_again_s: float = 1.0
    backoff_first_s: float = 0.1
    backoff_max_s: float = 10.0
    budget: int = 5  # failures within `window_s` before the circuit opens
    window_s: float = 60.0
    open_s: float = 10.0  # doubled with each failed probe
    open_max_s: float = 300.0
    jitter_share: float = 0.3  # a wait is shortened by up to this share of itself


class Life(NamedTuple):
    """All that the table remembers of one child."""

    state: State = State.DOWN
    goal: Goal = Goal.DOWN
    until_ns: int = 0  # when TIMER is due; 0 = never
    failures: tuple[int, ...] = ()  # when it failed (monotonic ns), newest last, within the window
    streak: int = 0  # failures since it was last healthy
    opens: int = 0  # times the circuit opened since it was last healthy
    blamed: bool = False  # the ladder was climbed for a fault of its own


class _Then(enum.IntEnum):
    """Where the next state depends on what is wanted and on the budget."""

    AGAIN = 0  # uncounted: a replacement at once, or DOWN
    FAILED = 1  # counted: at once, after a wait, or an open circuit; or DOWN
    LADDER = 2  # the ladder's end: FAILED when the child is blamed, else AGAIN
    HEALTHY = 3  # stay, with a clean slate


_Step = tuple[State | _Then, Action]

_TABLE: dict[tuple[State, Event], _Step] = {
    (State.DOWN, Event.START): (State.STARTING, Action.SPAWN),
    (State.STARTING, Event.READY): (State.READY, Action.NONE),
    (State.HALF_OPEN, Event.READY): (State.READY, Action.NONE),
    (State.READY, Event.TIMER): (_Then.HEALTHY, Action.NONE),
    # Who did a job can do jobs. What killed it is most likely the next one, which is charged for that by the broker; a
    # circuit opened by such deaths would keep a GPU idle while innocent jobs wait behind those that kill.
    **{(state, Event.WORKED): (_Then.HEALTHY, Action.NONE) for state in LIVE - {State.STARTING, State.HALF_OPEN}},
    (State.READY, Event.RECYCLE): (State.RECYCLING, Action.NONE),
    (State.DRAINING, Event.TIMER): (State.STOPPING, Action.SEND_STOP),
    (State.STOPPING, Event.TIMER): (State.DUMPING, Action.DUMP),
    (State.DUMPING, Event.TIMER): (State.TERMINATING, Action.TERM),
    (State.TERMINATING, Event.TIMER): (State.KILLING, Action.KILL),
    (State.KILLING, Event.TIMER): (State.KILLING, Action.KILL),
    (State.BACKOFF, Event.TIMER): (State.STARTING, Action.SPAWN),
    (State.OPEN, Event.TIMER): (State.HALF_OPEN, Action.SPAWN),
    (State.STARTING, Event.TIMER): (State.DUMPING, Action.DUMP),
    (State.HALF_OPEN, Event.TIMER): (State.DUMPING, Action.DUMP),
    # Leaving without being asked is a failure, whatever the exit status.
    **{
        (state, event): (_Then.FAILED, Action.NONE)
        for state in (State.STARTING, State.HALF_OPEN, State.READY)
        for event in (Event.EXITED_CLEAN, Event.EXITED_BAD)
    },
    **{(state, Event.EXITED_CLEAN): (_Then.AGAIN, Action.NONE) for state in (State.RECYCLING, State.DRAINING)},
    **{(state, Event.EXITED_BAD): (_Then.FAILED, Action.NONE) for state in (State.RECYCLING, State.DRAINING)},
    **{(State.STOPPING, event): (_Then.AGAIN, Action.NONE) for event in (Event.EXITED_CLEAN, Event.EXITED_BAD)},
    **{
        (state, event): (_Then.LADDER, Action.NONE)
        for state in (State.DUMPING, State.TERMINATING, State.KILLING)
        for event in (Event.EXITED_CLEAN, Event.EXITED_BAD)
    },
    **{
        (state, Event.DRAIN): (State.DRAINING, Action.SEND_DRAIN)
        for state in (State.STARTING, State.HALF_OPEN, State.READY, State.RECYCLING)
    },
    **{
        (state, Event.STOP): (State.STOPPING, Action.SEND_STOP)
        for state in (State.STARTING, State.HALF_OPEN, State.READY, State.RECYCLING, State.DRAINING)
    },
    **{
        (state, event): (State.DUMPING, Action.DUMP)
        for state in LIVE - {State.DUMPING, State.TERMINATING, State.KILLING}
        for event in (Event.HANG, Event.KILL)
    },
    **{(state, Event.NOW): (State.KILLING, Action.KILL) for state in LIVE - {State.KILLING}},
    # Without a process: what would make it leave settles at once, as the goal says.
    **{
        (state, event): (_Then.AGAIN, Action.NONE)
        for state in (State.BACKOFF, State.OPEN)
        for event in (Event.START, Event.DRAIN, Event.STOP, Event.NOW)
    },
}

_BLAMING = frozenset({(State.STARTING, Event.TIMER), (State.HALF_OPEN, Event.TIMER)})


def step(life: Life, event: Event, policy: Policy, now_ns: int, chance: float) -> tuple[Life, Action]:
    """The life after `event`, and what to do. `chance` is a random number in [0, 1).

    A pair that the table lacks changes nothing.
    """
    found = _TABLE.get((life.state, event))
    if found is None:
        return life, Action.NONE
    target, action = found
    if event is Event.HANG or (life.state, event) in _BLAMING:
        life = life._replace(blamed=True)
    if target is _Then.LADDER:
        target = _Then.FAILED if life.blamed else _Then.AGAIN
    if target is _Then.HEALTHY:
        until_ns = 0 if event is Event.TIMER else life.until_ns
        return life._replace(until_ns=until_ns, failures=(), streak=0, opens=0), action
    if isinstance(target, State):
        return _enter(life, target, policy, now_ns), action
    if target is _Then.FAILED:
        return _failed(life, policy, now_ns, chance)
    return _again(life, policy, now_ns)


def _enter(life: Life, state: State, policy: Policy, now_ns: int) -> Life:
    limit_s = {
        State.STARTING: policy.start_s,
        State.HALF_OPEN: policy.start_s,
        State.READY: policy.healthy_s,
        State.DRAINING: policy.drain_s,
        State.STOPPING: policy.stop_s,
        State.DUMPING: policy.dump_gap_s,
        State.TERMINATING: policy.term_grace_s,
        State.KILLING: policy.kill_again_s,
    }.get(state)
    until_ns = 0 if limit_s is None else now_ns + seconds_to_ns(limit_s)
    return life._replace(state=state, until_ns=until_ns, blamed=life.blamed and state in LEAVING)


def _again(life: Life, policy: Policy, now_ns: int) -> tuple[Life, Action]:
    if life.goal is Goal.DOWN:
        return Life(State.DOWN, Goal.DOWN), Action.NONE
    return _enter(life, State.STARTING, policy, now_ns), Action.SPAWN


def _failed(life: Life, policy: Policy, now_ns: int, chance: float) -> tuple[Life, Action]:
    if life.goal is Goal.DOWN:
        return Life(State.DOWN, Goal.DOWN), Action.NONE
    oldest_ns = now_ns - seconds_to_ns(policy.window_s)
    recent = (*(at_ns for at_ns in life.failures if at_ns > oldest_ns), now_ns)[-(policy.budget + 1) :]
    life = life._replace(failures=recent, streak=life.streak + 1, blamed=False)
    # A failed probe opens the circuit again, even when the old failures have left the window.
    if life.opens or len(recent) > policy.budget:
        wait_s = _wait_s(policy.open_s, life.opens, policy.open_max_s, policy, chance)
        until_ns = now_ns + seconds_to_ns(wait_s)
        return life._replace(state=State.OPEN, until_ns=until_ns, opens=life.opens + 1), Action.NONE
    if life.streak == 1:
        return _enter(life, State.STARTING, policy, now_ns), Action.SPAWN
    wait_s = _wait_s(policy.backoff_first_s, life.streak - 2, policy.backoff_max_s, policy, chance)
    return life._replace(state=State.BACKOFF, until_ns=now_ns + seconds_to_ns(wait_s)), Action.NONE


def _wait_s(first_s: float, doublings: int, max_s: float, policy: Policy, chance: float) -> float:
    # The exponent is bounded: a float does not overflow however long a child has been failing.
    return min(first_s * 2.0 ** min(doublings, 40), max_s) * (1.0 - policy.jitter_share * chance)
