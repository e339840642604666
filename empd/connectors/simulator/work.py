"""The work of a simulated service: pure. Where a piece of work stands follows from the time that is passed in."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from empd.connectors.simulator.wishes import Faults, Simulated, Wish

TASKS_MAX = 100_000


class Task:
    """One piece of work that was taken on."""

    def __init__(self, task_id: str, payload: Any, began_s: float, duration_s: float, wish: Wish) -> None:
        self.id = task_id
        self.payload = payload
        self.began_s = began_s
        self.duration_s = duration_s
        self.steps = wish.steps or 1
        self.fails = wish.fail
        self.faults: Faults = wish.faults
        self.cancelled = False
        self.asked = 0

    def step(self, now_s: float) -> int:
        """How many steps are done."""
        gone_s = now_s - self.began_s
        if gone_s >= self.duration_s:
            return self.steps
        return max(0, int(gone_s / self.duration_s * self.steps + 1e-9))

    def step_at_s(self, step: int) -> float:
        """When a step is done."""
        return self.began_s + self.duration_s * step / self.steps

    def status(self, now_s: float) -> str:
        """The word for where it stands."""
        if self.cancelled:
            return "cancelled"
        if self.step(now_s) < self.steps:
            return "running"
        return "failed" if self.fails else "completed"

    def view(self, now_s: float) -> dict[str, Any]:
        """What a caller is told."""
        status, step = self.status(now_s), self.step(now_s)
        told: dict[str, Any] = {"id": self.id, "status": status, "progress": step / self.steps}
        told |= {"step": step, "steps": self.steps}
        if status == "completed":
            told["result"] = self.result()
        elif status == "failed":
            told["error"] = {"code": "simulated_failure", "message": "it failed, as it was asked to"}
        return told

    def result(self) -> dict[str, Any]:
        """What comes of it."""
        return {"steps": self.steps, "echo": self.payload}


class Work:
    """All tasks. The same key leads to the same task; `counts` says what was really begun."""

    def __init__(self, simulated: Simulated, seed: int = 0) -> None:
        self.simulated = simulated
        self.tasks: dict[str, Task] = {}
        self.calls: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.executions: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self._by_key: dict[str, str] = {}
        self._chance = random.Random(seed)
        self._number = 0

    def submit(self, payload: Any, wish: Wish, key: str, now_s: float) -> Task:
        """Takes work on, unless it was already under this key."""
        self.calls[key] += 1
        known = self.tasks.get(self._by_key.get(key, "")) if key else None
        if known is not None:
            return known
        self.executions[key] += 1
        self._number += 1
        task = self._task(f"task-{self._number}", payload, wish, now_s)
        if len(self.tasks) >= TASKS_MAX:
            self.tasks.pop(next(iter(self.tasks)))
        self.tasks[task.id] = task
        if key:
            self._by_key[key] = task.id
        return task

    def _task(self, task_id: str, payload: Any, wish: Wish, now_s: float) -> Task:
        simulated = self.simulated
        duration_s = simulated.duration_s if wish.duration_s is None else wish.duration_s
        duration_s *= 1 + simulated.jitter * self._chance.uniform(-1, 1)
        task = Task(task_id, payload, now_s, duration_s, wish)
        task.steps = wish.steps or simulated.steps
        task.fails = wish.fail or self._chance.random() < simulated.failure_rate
        return task

    def known(self, key: str) -> Task | None:
        """The task that was submitted under a key."""
        return self.tasks.get(self._by_key.get(key, ""))

    def ask(self, task_id: str) -> Task | None:
        """A question about a task; None: unknown, as after a restart."""
        task = self.tasks.get(task_id)
        if task is None:
            return None
        task.asked += 1
        if task.faults.forget_after is not None and task.asked > task.faults.forget_after:
            self.forget(task)
            return None
        return task

    def forget(self, task: Task) -> None:
        """The service does not know it any more, nor its key."""
        self.tasks.pop(task.id, None)
        self._by_key = {key: known for key, known in self._by_key.items() if known != task.id}

    def cancel(self, task_id: str, now_s: float) -> Task | None:
        """Stops a task that runs; None: unknown."""
        task = self.tasks.get(task_id)
        if task is not None and task.status(now_s) == "running":
            task.cancelled = True
            self.ended["cancelled"] += 1
        return task

    def healthy(self) -> bool:
        """The answer to a question about health."""
        return self._chance.random() >= self.simulated.health_failure_rate

    def restart(self) -> None:
        """Forgets all tasks and keys, as a service without a disk does."""
        self.tasks.clear()
        self._by_key.clear()

    def counts(self, now_s: float) -> dict[str, Any]:
        """What was asked, and what was done. `submissions`: by key, calls and executions."""
        states = Counter(task.status(now_s) for task in self.tasks.values())
        return {
            "requests": dict(self.requests),
            "submissions": {
                key: {"calls": calls, "executions": self.executions[key]} for key, calls in self.calls.items()
            },
            "executions": sum(self.executions.values()),
            "tasks": dict(states),
            "cancelled": self.ended["cancelled"],
            "hung_up": self.ended["hung_up"],
        }

    def reset(self) -> None:
        """Everything as at the start."""
        self.restart()
        for counter in (self.calls, self.requests, self.executions, self.ended):
            counter.clear()


def without_wish(body: Any) -> Any:
    """A body as work: what was wished of the simulation itself is not part of it."""
    if not isinstance(body, Mapping):
        return body
    return {name: value for name, value in body.items() if name not in Wish.__struct_fields__}
