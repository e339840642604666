"""A worker: takes assigned jobs from the broker, runs connectors, tells how it went.

Entered by the supervisor as `empd.worker.process:main`. One thread, one uvloop; order of life: `serve`, connect and
open, take jobs, leave (drain, recycle, stop).
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import uvloop
import zmq

from empd.assets.room import Room
from empd.connectors.base import Site
from empd.connectors.context import JobDetails
from empd.connectors.meters import Meters
from empd.connectors.registrations import Registered
from empd.connectors.tracing import tracer_for
from empd.errors import FailureClass
from empd.internal import log_path
from empd.lifecycle import Child, ChildKind, Control, Notice, receive, send
from empd.mapping import Mapping
from empd.memory.arena import Arena
from empd.wire import codec, frames
from empd.wire.telemetry import ServiceFacts
from empd.worker import stacks
from empd.worker.activity import Activities
from empd.worker.assets import Storage
from empd.worker.hosted import Hosted, Plan, plan_of, reconfigure
from empd.worker.internal import Internal
from empd.worker.lanes import Entry, Lanes
from empd.worker.leaving import Leaving, Way
from empd.worker.link import Link
from empd.worker.log import Log
from empd.worker.outbox import Outbox
from empd.worker.outcome import Outcomes
from empd.worker.port import Port
from empd.worker.report import METRICS_INTERVAL_S, Reporter
from empd.worker.requests import Requests
from empd.worker.servers import Seat

OPTIONS_CACHED_MAX = 1024
OBJECTS_PER_JOB = 100
"""More than a job in flight has for the garbage collector to look at."""

CLOSE_SHARE = 0.3
"""The part of `term_grace_s` that connectors have to close."""


def main(child: Child) -> int:
    """Runs a worker until it is told to end. 0: it was asked to; 1: the supervisor is gone."""
    kind = child.mapping.workers[child.worker_type]
    environ = dict(os.environ)
    os.environ.update(kind.environment)
    sys.path[:0] = [str(path) for path in child.settings.python_path if str(path) not in sys.path]
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(Worker(child, environ).serve())
    finally:
        loop.close()


class Worker:
    """One worker process's parts, and what happens on each frame and record."""

    def __init__(self, child: Child, environ: dict[str, str]) -> None:
        """`environ`: the daemon's, in which the mapping's variables are read."""
        self._child = child
        self._settings = child.settings
        self._kind = child.mapping.workers[child.worker_type]
        self._log = Log(
            child.settings.log_level,
            machine=os.uname().nodename,
            worker=child.name,
            generation=child.generation,
            pid=os.getpid(),
        )
        self._environ = environ
        self._assets_room = Room()
        self._routes: dict[str, str] = self._kind.routes()
        self._details: dict[bytes, tuple[Hosted | None, JobDetails]] = {}
        self._welcomed = False
        self._opened = False
        self._ready_sent = False
        self._reloading = asyncio.Lock()

    async def serve(self) -> int:
        """The worker's whole life; returns the exit status."""
        self._startup()
        opening = asyncio.create_task(self._open_services())
        try:
            return await self._ended
        finally:
            await self._shutdown(opening)

    def _startup(self) -> None:
        child, settings = self._child, self._settings
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._zmq: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._tracer, problem = tracer_for(child.name, os.environ)
        if problem:
            self._log("traces_unavailable", "error", reason=problem)
        arena = Arena(settings.spool_dir, settings.volatile_dir, sync=settings.survives_power_loss)
        self._reporter = Reporter(self._zmq, settings.telemetry_endpoint, settings.job_log_bytes_max)
        self._link = Link(self._zmq, settings.workers_endpoint, self._on_frame, self._say_hello)
        self._outbox = Outbox(self._link.send, self._loop.call_soon)
        self._requests = Requests(lambda frame: self._welcomed and self._link.send(frame))
        limit_bytes = self._kind.memory_max_bytes
        self._activities = Activities(
            child, settings.worker_memory_max_bytes if limit_bytes is None else limit_bytes, self._on_heavy
        )
        outcomes = Outcomes(self._outbox, arena, settings.durability != "memory", self._activities.note)
        self._outcomes = outcomes
        self._lanes = Lanes(
            self._kind.max_concurrent_jobs, outcomes, lambda error: self._log("lane_lost", "error", reason=repr(error))
        )
        caught_up = functools.partial(self._requests.state_get, "")  # frames are answered in order
        self._leaving = Leaving(child, self._lanes, self._outbox, self._offer, caught_up, lambda: self._end(0))
        self._services = {name: self._host(name, arena) for name in dict.fromkeys(self._routes.values())}
        self._activities.watch(self._lanes, [hosted.tally for hosted in self._services.values()])
        self._handlers: dict[type, Callable[[Any], object]] = {
            frames.Assign: self._on_assign,
            frames.Settled: lambda frame: self._outbox.settle(frame.number),
            frames.Stop: lambda frame: self._lanes.stop((frame.id, frame.epoch), frame.failure),
            frames.Abandon: lambda frame: self._abandon(frame.jobs),
            frames.Stored: self._requests.answered,
            frames.StateValue: self._requests.answered,
            frames.WorkerWelcome: self._on_welcome,
            frames.Error: self._on_error,
        }
        self._loop.add_reader(child.control.fileno(), self._on_control)
        self._loop.add_signal_handler(signal.SIGTERM, self._leaving.stop)
        stacks.watch(self._loop, child.evidence_fd)
        self._loop.add_signal_handler(signal.SIGINT, lambda: None)  # Ctrl-C reaches the group; the supervisor decides
        self._heartbeat()
        self._next_snapshot = self._loop.call_later(METRICS_INTERVAL_S, self._snapshot)

    def _host(self, name: str, arena: Arena) -> Hosted:
        child, service = self._child, self._child.mapping.services[name]
        plan = plan_of(child.mapping, child.worker_type, name)
        site = Site(
            service=name,
            worker=child.name,
            device=child.device,
            max_concurrent_jobs=plan.slots,
            isolation=service.isolation,
            python_path=tuple(str(path) for path in self._settings.python_path),
            log=self._log,
            logger=self._log.logger,
            metrics=Meters(),
        )
        config, settings = child.mapping.asset_config(name), self._settings
        storage = Storage(name, config, settings.assets_dir, settings.disk_free_min_bytes, self._log, self._assets_room)
        port = Port(self._requests, self._reporter, arena, self._activities.moved, storage)
        hosted = self._hosted(name, plan, site, port)
        hosted.registered = Registered(self._settings.runtime_dir, name, child.name, child.device)
        hosted.on_facts = lambda: self._reporter.facts(name, lambda: self._facts(hosted))
        return hosted

    def _hosted(self, name: str, plan: Plan, site: Site, port: Port) -> Hosted:
        child = self._child
        instance = child.mapping.server_for(name, child.device, child.lap)
        if instance is None:
            return Hosted(name, plan, site, port, self._log, self._tracer)
        show_lease = functools.partial(self._activities.lease, name)
        seat = Seat(self._activities.board, show_lease, log_path(self._settings.state_dir, instance.name))
        hosted = Internal(name, plan, site, port, self._log, self._tracer)
        hosted.attach(instance, seat, functools.partial(send, child.control))
        return hosted

    def _facts(self, hosted: Hosted) -> ServiceFacts:
        child = self._child
        facts = {"worker_type": child.worker_type, **hosted.facts()}
        return ServiceFacts(child.name, child.generation, hosted.name, facts)

    async def _open_services(self) -> None:
        async def begin(hosted: Hosted) -> None:
            hosted.build()
            await hosted.open(self._offer)
            self._offer()

        async with self._reloading:  # a reload that comes meanwhile would open them a second time
            await asyncio.gather(*(begin(hosted) for hosted in self._services.values()))
        gc.collect()
        gc.freeze()
        # What the jobs in flight hold is no garbage: each wave of them would be searched for some, several times.
        gc.set_threshold(gc.get_threshold()[0] + OBJECTS_PER_JOB * self._kind.max_concurrent_jobs)
        self._opened = True
        self._activities.measure_baseline(self._log)
        self._tell_ready()

    async def _shutdown(self, opening: asyncio.Task[None]) -> None:
        self._loop.remove_reader(self._child.control.fileno())
        self._leaving.close()
        opening.cancel()
        await self._lanes.close()
        closing = [asyncio.ensure_future(hosted.close()) for hosted in self._services.values()]
        if self._tracer.on:
            closing.append(asyncio.ensure_future(asyncio.to_thread(self._tracer.close)))
        # What does not close in time (a thread in an endless call, a model half loaded) ends with the process.
        await asyncio.wait((opening, *closing), timeout=CLOSE_SHARE * self._settings.term_grace_s)
        self._snapshot()
        self._next_beat.cancel()
        self._next_snapshot.cancel()
        self._activities.close()
        self._reporter.close()
        self._link.close()
        self._zmq.term()

    # --- what is offered ---------------------------------------------------------------------------------------------

    def _offers(self) -> list[frames.ServiceOffer]:
        offers = []
        for job_type, name in self._routes.items():
            hosted = self._services[name]
            reason = self._leaving.way or hosted.reason
            offers.append(frames.ServiceOffer(job_type, 0 if reason else hosted.plan.slots, reason, hosted.models))
        return offers

    def _slots(self) -> int:
        return 0 if self._leaving.way else self._kind.max_concurrent_jobs

    def _offer(self) -> None:
        """Says what is offered now; before the first Welcome the next Hello says it."""
        if self._welcomed:
            self._link.send(frames.Capacity(self._slots(), self._offers(), self._leaving.way))

    def _say_hello(self) -> None:
        child = self._child
        self._welcomed = self._outbox.open = False
        hello = frames.WorkerHello(
            version=frames.VERSION,
            name=child.name,
            generation=child.generation,
            worker_type=child.worker_type,
            slots=self._slots(),
            offers=self._offers(),
            held=list({*self._lanes.held(), *self._outbox.held()}),
            capabilities=self._kind.capabilities,
            device=msgspec.to_builtins(child.device) if child.device is not None else None,
            pid=os.getpid(),
        )
        self._said = (hello.slots, hello.offers)
        self._link.send(hello)

    def _tell_ready(self) -> None:
        if self._opened and self._welcomed and not self._ready_sent:
            self._ready_sent = send(self._child.control, Control(Notice.READY, ChildKind.WORKER, self._child.slot))

    # --- frames ------------------------------------------------------------------------------------------------------

    def _on_frame(self, frame: Any) -> None:
        self._handlers[type(frame)](frame)

    def _on_welcome(self, frame: frames.WorkerWelcome) -> None:
        self._welcomed = self._outbox.open = True
        for hosted in self._services.values():
            hosted.port.instance = frame.instance
        self._abandon(frame.abandon)
        self._outbox.resend()
        self._requests.resend()
        if (self._slots(), self._offers()) != self._said:
            self._offer()
        self._tell_ready()

    def _on_assign(self, frame: frames.Assign) -> None:
        if not self._welcomed:
            return  # of the connection before: the Hello has not named these, so they go to somebody else
        if frame.settled:
            self._outbox.settle(frame.settled)
        for group in frame.groups:
            hosted, details = self._group(bytes(group.options))
            timeout_s = group.timeout_s
            if hosted is None or self._leaving.way is Way.STOPPING:
                for job in group.jobs:
                    self._outcomes.never_ran(hosted, (job.id, job.epoch), "drain")
            else:
                entries: list[Entry] = [(hosted, details, timeout_s, job) for job in group.jobs]
                self._lanes.add(entries)

    def _group(self, options: bytes) -> tuple[Hosted | None, JobDetails]:
        found = self._details.get(options)
        if found is None:
            decoded = codec.decode_options(options)
            details = JobDetails(**{name: getattr(decoded, name) for name in JobDetails.__struct_fields__})
            found = (self._services.get(self._routes.get(decoded.service, "")), details)
            if len(self._details) >= OPTIONS_CACHED_MAX:
                self._details.clear()
            self._details[options] = found
        return found

    def _abandon(self, claims: list[tuple[int, int]]) -> None:
        """Stops these; each is named in `Abandoned` once it has stopped (at once, when it does not run here)."""
        wanted = {(job_id, epoch) for job_id, epoch in claims}
        self._outbox.drop(wanted)
        for claim in wanted:
            if not self._lanes.stop(claim, "abandon"):
                self._outbox.abandoned(claim)

    def _on_error(self, frame: frames.Error) -> None:
        if frame.request and self._requests.refused(frame):
            return
        self._log("broker_error", "error", failure=frame.failure, message=frame.message)
        if not frame.request and frame.failure == FailureClass.REFUSED and self._welcomed:
            # The broker does not know this connection (any more): it must hear what is held here.
            self._say_hello()

    # --- control and signals -----------------------------------------------------------------------------------------

    def _on_control(self) -> None:
        records = receive(self._child.control)
        if records is None:
            self._end(1)
            return
        for record in records:
            match record.notice:
                case Notice.DRAIN:
                    self._leaving.drain(float(record.value))
                case Notice.RESUME:
                    self._leaving.resume()
                case Notice.RELOAD:
                    self._loop.create_task(self._reload()).add_done_callback(lambda _: self._offer())
                case Notice.STOP:
                    self._leaving.stop()
                case _:
                    continue  # neighbours: the broker's concern

    def _on_heavy(self) -> None:
        if self._leaving.way is Way.STAYS:
            self._log("worker_recycled", "warning", rss_bytes=self._activities.rss_bytes)
            self._leaving.recycle()

    async def _reload(self) -> None:
        """Takes over what is new in the services' configuration; builds again what could not be built or opened."""
        async with self._reloading:
            with_environ = functools.partial(Mapping.load, self._settings.mapping, self._environ)
            await reconfigure(self._services, self._child.worker_type, with_environ, self._log)
            for hosted in self._services.values():
                if hosted.reason and not hosted.meter.active_jobs:
                    await hosted.close()
                    hosted.build()
                    await hosted.open(self._offer)

    def _end(self, status: int) -> None:
        if not self._ended.done():
            self._ended.set_result(status)

    # --- timers ------------------------------------------------------------------------------------------------------

    def _heartbeat(self) -> None:
        self._activities.heartbeat()
        self._next_beat = self._loop.call_later(self._settings.heartbeat_s, self._heartbeat)

    def _snapshot(self) -> None:
        samples = [sample for hosted in self._services.values() for sample in hosted.samples()]
        self._reporter.metrics(self._child.name, self._child.generation, samples + self._activities.samples())
        if not self._ended.done():
            for hosted in self._services.values():
                hosted.on_facts()
            # Said again now and then: a broker that does not know this worker answers with an error, and is told.
            self._offer()
            self._next_snapshot = self._loop.call_later(METRICS_INTERVAL_S, self._snapshot)
