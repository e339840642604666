"""The queue under thousands of random interleavings in virtual time, with the invariants checked after each step."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from queue_world import SERVICES, World

from empd.job import JobOptions
from empd.lifecycle import Exit

names = st.sampled_from(["w0", "w1", "w2"])
options = st.builds(
    lambda service, priority, memory, queue_s, total_s, run_s, later_s, models: JobOptions(
        service=service,
        priority=priority,
        requirements={"memory_gb": memory} if memory else None,
        queue_timeout_s=queue_s,
        total_timeout_s=total_s,
        timeout_s=run_s,
        not_before=1_700_000_000 + later_s if later_s else None,
        model_keys=models,
    ),
    st.sampled_from(SERVICES),
    st.sampled_from([10, 50, 50, 90]),
    st.sampled_from([0, 0, 8, 24]),
    st.sampled_from([None, None, 20.0]),
    st.sampled_from([None, None, 40.0]),
    st.sampled_from([None, 0.0, 15.0]),
    st.sampled_from([0, 0, 25]),
    st.sampled_from([(), (), ("m0",), ("m1",), ("m1", "m2"), ("nobody's",)]),
)


class Box(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.world = World()

    @rule(groups=st.lists(st.tuples(options, st.integers(1, 4)), min_size=1, max_size=3))
    def submit(self, groups: list[tuple[JobOptions, int]]) -> None:
        self.world.submit(groups)

    @rule(keys=st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=3, unique=True))
    def submit_keyed(self, keys: list[str]) -> None:
        self.world.submit([(JobOptions(service="alpha"), 1)], keys)

    @rule()
    def submit_refused(self) -> None:
        self.world.submit([(JobOptions(service="nobody"), 2)])

    @rule()
    def submit_partly_refused(self) -> None:
        self.world.submit([(JobOptions(service="nobody"), 1), (JobOptions(service="beta"), 2)])

    @rule(answered=st.booleans())
    def deliver(self, answered: bool) -> None:
        self.world.deliver()
        if answered:
            self.world.acknowledge()

    @rule(name=names, slots=st.integers(1, 5), kind=st.integers(0, 1))
    def start_worker(self, name: str, slots: int, kind: int) -> None:
        self.world.start_worker(name, slots, kind)

    @rule(name=names, lose=st.booleans(), loaded=st.booleans())
    def claim(self, name: str, lose: bool, loaded: bool) -> None:
        self.world.deliver()
        self.world.acknowledge()
        self.world.claim(name, lose=lose, loaded=loaded)

    @rule(
        name=names, how=st.sampled_from(["done", "done", "retry", "final"]), count=st.integers(1, 5), lose=st.booleans()
    )
    def finish(self, name: str, how: str, count: int, lose: bool) -> None:
        self.world.finish(name, how, count, lose=lose)

    @rule(name=names, how=st.sampled_from([Exit.CRASHED, Exit.OUT_OF_MEMORY, Exit.HUNG, Exit.GPU_LOST, Exit.CLEAN]))
    def kill_worker(self, name: str, how: Exit) -> None:
        self.world.kill_worker(name, how)

    @rule(
        host_too=st.sampled_from([False, False, True]),
        offline_s=st.sampled_from([0.0, 3.0, 30.0]),
        clock_step_s=st.sampled_from([0.0, -3600.0, 3600.0]),
    )
    def kill_broker(self, host_too: bool, offline_s: float, clock_step_s: float) -> None:
        # Set forward while the machine is off it cannot be told from time that passed.
        clock_step_s = min(clock_step_s, 0.0) if host_too else clock_step_s
        self.world.kill_broker(host_too=host_too, offline_s=offline_s, clock_step_s=clock_step_s)

    @rule(index=st.integers(0, 100))
    def cancel(self, index: int) -> None:
        self.world.cancel(index)

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 20.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.advance(seconds)
        self.world.tick()

    @rule(seconds=st.sampled_from([-3600, -0.5, 0.5, 3600]))
    def set_wall_clock(self, seconds: float) -> None:
        self.world.set_wall_clock(seconds)

    @rule(fraction=st.floats(0, 1))
    def trim(self, fraction: float) -> None:
        self.world.trim(fraction)

    @invariant()
    def invariants_hold(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.resubmit()
            self.world.drain()


TestBox = Box.TestCase
TestBox.settings = settings(
    max_examples=300, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
