"""Jobs go where the models that they name are loaded, among equals, and nobody waits for ever because of it."""

from __future__ import annotations

from itertools import islice

from queue_world import Bench

from empd.job import JobOptions
from empd.queue.claims import MODEL_WINDOW, OVERTAKEN_MAX
from empd.queue.state import Offer, Worker


def wanting(*models: str, **more: object) -> JobOptions:
    return JobOptions(service="alpha", model_keys=models, **more)  # type: ignore[arg-type]


class Models(Bench):
    """w0 has `ink` loaded, w1 `oil`; each runs one job at a time."""

    def __init__(self) -> None:
        super().__init__(slots=1)
        self.start_worker("w1", 1, 0)
        self.connect(self.workers["w1"])
        for name, model in (("w0", "ink"), ("w1", "oil")):
            self.queue.offer(self.at(name), 1, {"alpha": Offer(1, models=[model])}, "")

    def at(self, name: str) -> Worker:
        worker = self.workers[name].connected
        assert worker is not None
        return worker

    def round(self) -> dict[str, int]:
        """What the broker does in a pass; then all is done. Worker → the number of the job that it got."""
        for loaded in (True, False):
            for name in ("w0", "w1"):
                self.claim(name, loaded=loaded)
        got = {name: job & 0xFFFFFFFF for name in ("w0", "w1") for job in self.at(name).held}
        for name in got:
            self.finish(name, "done", 1)
        return got


def test_a_job_goes_where_its_model_is_loaded() -> None:
    bench = Models()
    for model in ("oil", "ink", "ink", "oil"):
        bench.say(wanting(model))
    assert bench.round() == {"w0": 2, "w1": 1}
    assert bench.round() == {"w0": 3, "w1": 4}


def test_a_worker_without_it_takes_it_rather_than_rest() -> None:
    bench = Models()
    for _ in range(2):
        bench.say(wanting("oil"))
    assert bench.round() == {"w0": 2, "w1": 1}


def test_all_of_several_models_have_to_be_there() -> None:
    bench = Models()
    bench.queue.offer(bench.at("w1"), 1, {"alpha": Offer(1, models=["oil", "ink"])}, "")
    bench.say(wanting("oil", "ink"))
    bench.say(wanting("ink"))
    assert bench.round() == {"w0": 2, "w1": 1}


def test_a_higher_priority_goes_before_any_model() -> None:
    bench = Models()
    bench.say(wanting("ink", priority=50))
    for _ in range(2):
        bench.say(wanting(priority=90))
    assert bench.round() == {"w0": 2, "w1": 3}


def test_the_first_of_a_line_is_overtaken_so_often_and_no_more() -> None:
    bench = Models()
    bench.workers["w1"].slots = 0
    bench.queue.offer(bench.at("w1"), 0, {}, "")
    for model in ("chalk", "chalk", *["ink"] * (2 * OVERTAKEN_MAX + 1)):
        bench.say(wanting(model))
    order = [bench.round()["w0"] for _ in range(2 * OVERTAKEN_MAX + 3)]
    ink = iter(range(3, 2 * OVERTAKEN_MAX + 4))
    assert order == [*islice(ink, OVERTAKEN_MAX), 1, *islice(ink, OVERTAKEN_MAX), 2, *ink]


def test_only_so_far_into_a_line_is_looked() -> None:
    bench = Models()
    for _ in range(MODEL_WINDOW):
        bench.say(wanting())
    bench.say(wanting("oil"))
    assert bench.round() == {"w0": 1, "w1": 2}
    assert bench.round() == {"w0": 3, "w1": MODEL_WINDOW + 1}


def test_one_that_was_taken_from_within_the_line_and_comes_back_is_claimed_once() -> None:
    """Its first place in the line is still there, in the middle or at the end."""
    for last in (False, True):
        bench = Models()
        bench.queue.offer(bench.at("w1"), 0, {}, "")
        for model in ("chalk", "ink", *([] if last else ["chalk"])):
            bench.say(wanting(model))
        bench.claim("w0", loaded=True)
        (job,) = bench.at("w0").held.values()
        assert job.id & 0xFFFFFFFF == 2
        bench.fail(job, cause=2)  # as a drain: it waits again at once
        bench.queue.offer(bench.at("w0"), 9, {"alpha": Offer(9, models=[])}, "")
        bench.workers["w0"].slots = 9
        bench.claim("w0")
        held = [job.id & 0xFFFFFFFF for job in bench.at("w0").held.values()]
        assert sorted(held) == ([1, 2] if last else [1, 2, 3])
        assert {job.attempts for job in bench.at("w0").held.values()} == {1, 2}
