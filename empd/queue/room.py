"""The waiting room: jobs that may be claimed, grouped by signature, so that a claim never looks at a job that the
asker cannot run.

    job ── options ── Group (service, priority, requirements)      one FIFO each
                        │ registered, once, with each queue whose workers can run it
                      AskQueue (service, capabilities)             a heap of groups, best head first
                        │ one per service offered
                      Worker

The order of a group in a heap is (-priority, order of its first job). Heap entries are lower bounds: a stale one is
noticed and corrected when it comes to the top, so that neither adding nor removing a job touches a heap. All of
this is an index over the jobs' states; only `jobs` with state WAITING count.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import msgspec

from empd.job import State
from empd.queue import matching
from empd.queue.state import Job

_Key = tuple[int, int]
_WAITING = State.WAITING  # to look up a member of an enum takes its time, and here it is done for every job
GROUPS_IDLE_MAX = 10_000


class Group:
    """Jobs that the same workers can run, in the order in which they came."""

    __slots__ = (
        "early", "fifo", "lost_ns", "number", "overtaken", "priority", "queues", "requirements", "service", "waiting",
        "wants_models",
    )  # fmt: skip

    def __init__(self, number: int, service: str, priority: int, requirements: dict[str, Any] | None) -> None:
        self.number = number
        self.service = service
        self.priority = priority
        self.requirements = requirements
        self.fifo: deque[Job] = deque()
        self.early: list[tuple[int, int, Job]] = []  # heap: those that came back, by (order, id)
        self.queues: list[AskQueue] = []
        self.waiting = 0
        self.wants_models = False  # some of its jobs say which models they need
        self.overtaken = 0  # jobs that went before the first one since that is the first
        self.lost_ns = 0  # steady time since which no configured worker can run its jobs

    def all_waiting(self) -> Iterator[Job]:
        """Its waiting jobs."""
        yield from (job for job in self.fifo if job.state is State.WAITING)
        yield from (job for _, _, job in self.early if job.state is State.WAITING)

    def head(self) -> int | None:
        """The order of the first waiting job; None when there is none. Drops what no longer waits."""
        fifo, early = self.fifo, self.early
        while fifo and fifo[0].state is not _WAITING:
            fifo.popleft()
        while early and early[0][2].state is not _WAITING:
            heapq.heappop(early)
        if early and (not fifo or early[0] < _entry(fifo[0])):
            return early[0][0]
        return fifo[0].order if fifo else None

    def first(self, count: int, order_max: int | None) -> list[Job]:
        """Up to `count` jobs from the head on, none with an order above `order_max`. `head` was called before."""
        jobs = list(islice(self.fifo, count))
        if self.early:
            # One that was taken from within the line and came back still has its first place there, too.
            if not self.fifo or self.early[0] <= _entry(self.fifo[0]):
                return [self.early[0][2]]
            jobs = [job for job in jobs if _entry(job) < self.early[0]]
        if order_max is None:
            return [job for job in jobs if job.state is _WAITING]
        return [job for job in jobs if job.state is _WAITING and job.order <= order_max] or jobs[:1]

    def oldest_ns(self) -> int:
        """When the first waiting job was submitted; 0 when none waits."""
        if self.head() is None:
            return 0
        return self.first(1, None)[0].submitted_ns


def _entry(job: Job) -> tuple[int, int, Job]:
    """Its place in the line; jobs of one row stand in the order of their ids."""
    return job.order, job.id, job


class AskQueue:
    """The groups that one kind of asker can run for one service."""

    __slots__ = ("capabilities", "groups", "heap", "keys", "service")

    def __init__(self, service: str, capabilities: dict[str, Any]) -> None:
        self.service = service
        self.capabilities = capabilities
        self.groups: dict[int, Group] = {}
        self.heap: list[tuple[int, int, int]] = []
        self.keys: dict[int, _Key] = {}

    def offer(self, group: Group, order: int) -> None:
        """`group` may now begin with a job of this order."""
        key = (-group.priority, order)
        known = self.keys.get(group.number)
        if known is None or key < known:
            self.keys[group.number] = key
            heapq.heappush(self.heap, (*key, group.number))

    def best(self) -> _Key | None:
        """The key of the group to take from; None when nothing waits for this asker."""
        heap, keys = self.heap, self.keys
        while heap:
            negative_priority, order, number = heap[0]
            if keys.get(number) != (negative_priority, order):
                heapq.heappop(heap)
                continue
            head = self.groups[number].head()
            if head == order:
                return negative_priority, order
            if head is None:
                heapq.heappop(heap)
                del keys[number]
            else:
                keys[number] = (negative_priority, head)
                heapq.heapreplace(heap, (negative_priority, head, number))
        return None

    def best_group(self) -> Group:
        """The group to take from. `best` was called before and gave a key."""
        return self.groups[self.heap[0][2]]

    def run(self, count: int, rival: _Key | None) -> list[Job]:
        """Up to `count` jobs of the best group, as far as they go before `rival` and the next group. `best` was
        called before and gave a key."""
        heap = self.heap
        nearest = rival
        for child in heap[1:3]:
            key = (child[0], child[1])
            if nearest is None or key < nearest:
                nearest = key
        group = self.groups[heap[0][2]]
        if nearest is None or nearest[0] > -group.priority:
            return group.first(count, None)
        return group.first(count, nearest[1])


class WaitingRoom:
    """All groups and all queues."""

    def __init__(self) -> None:
        self._by_signature: dict[tuple[str, int, bytes], Group] = {}
        self._queues: dict[tuple[str, bytes], AskQueue] = {}
        self._numbered = 0

    def group(self, service: str, priority: int, requirements: dict[str, Any] | None) -> Group:
        """The group of a signature."""
        signature = (service, priority, canonical(requirements) if requirements else b"")
        group = self._by_signature.get(signature)
        if group is None:
            self._numbered += 1
            group = Group(self._numbered, service, priority, requirements)
            self._by_signature[signature] = group
            for queue in self._queues.values():
                self._register(queue, group)
        return group

    def queue(self, service: str, capabilities: dict[str, Any]) -> AskQueue:
        """The queue of askers with these capabilities for this service."""
        signature = (service, canonical(capabilities))
        queue = self._queues.get(signature)
        if queue is None:
            queue = self._queues[signature] = AskQueue(service, capabilities)
            for group in self._by_signature.values():
                self._register(queue, group)
        return queue

    def append(self, group: Group, jobs: list[Job]) -> None:
        """New jobs, later than all others of the group."""
        if jobs and group.head() is None:
            for queue in group.queues:
                queue.offer(group, jobs[0].order)
        group.fifo.extend(jobs)
        group.waiting += len(jobs)

    def add(self, job: Job) -> None:
        """A job that waits (again) keeps its place in the order of submission."""
        group: Group = job.options.group
        if group.fifo and group.fifo[-1] is job:  # it was taken from within the line, and is still the last there
            for queue in group.queues:
                queue.offer(group, job.order)
            group.waiting += 1
        elif group.fifo and _entry(job) < _entry(group.fifo[-1]):
            heapq.heappush(group.early, _entry(job))
            for queue in group.queues:
                queue.offer(group, job.order)
            group.waiting += 1
        else:
            self.append(group, [job])

    def refill(self, jobs: Iterable[Job]) -> None:
        """Begins anew with the waiting ones of `jobs`, in the order of submission: a replay takes them out of the
        line in another order than claims do, and brings back carried ones late."""
        for group in self._by_signature.values():
            group.fifo.clear()
            group.early.clear()
            group.waiting = 0
        for queue in self._queues.values():
            queue.heap.clear()
            queue.keys.clear()
        for job in sorted((job for job in jobs if job.state is State.WAITING), key=lambda job: (job.order, job.id)):
            self.add(job)

    def forget_idle(self, in_use: set[int]) -> bool:
        """Drops empty groups (whose numbers are not in use) once there are very many. True: options that were
        resolved before may name a group that is no more."""
        if len(self._by_signature) <= GROUPS_IDLE_MAX:
            return False
        for signature, group in list(self._by_signature.items()):
            if group.head() is None and group.number not in in_use:
                del self._by_signature[signature]
                for queue in group.queues:
                    queue.groups.pop(group.number, None)
                    queue.keys.pop(group.number, None)
        return True

    def groups(self) -> list[Group]:
        """All groups."""
        return list(self._by_signature.values())

    def _register(self, queue: AskQueue, group: Group) -> None:
        if group.service != queue.service or not matching.matches(group.requirements, queue.capabilities):
            return
        queue.groups[group.number] = group
        group.queues.append(queue)
        head = group.head()
        if head is not None:
            queue.offer(group, head)


def canonical(value: Any) -> bytes:
    """The same bytes for equal dicts, whatever the order of their keys."""
    return msgspec.msgpack.encode(value, order="sorted")
