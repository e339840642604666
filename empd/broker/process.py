"""The broker: the only process that changes a job's state.

One pass of its loop: drain the sockets, decide, append all facts, commit once, then send. Nothing leaves before the
commit of the pass that caused it; after a failed commit nothing of the pass is sent and the process exits, to be
replaced by one that replays. No asyncio: poll until the deadline that the last tick returned.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
import select
import signal
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import zmq

from empd import clock, lifecycle, prctl
from empd.broker.blobs import BlobKeeper
from empd.broker.clients import ClientDesk, Host, Means
from empd.broker.ledger import Ledger
from empd.broker.neighbours import Neighbours
from empd.broker.outbox import Outbox
from empd.broker.peers import Router
from empd.broker.policy import queue_policy
from empd.broker.status import picture
from empd.broker.stream import Stream
from empd.broker.workers import WorkerDesk
from empd.clock import NS_PER_MS, NS_PER_S, Instant
from empd.errors import ConfigError, JournalDamaged, JournalError
from empd.lifecycle import Child, Control, Notice
from empd.memory.board import Board
from empd.memory.layout import Activity
from empd.queue.evolve import HISTORY
from empd.queue.machine import NOTHING_LOST, Lost, Queue
from empd.queue.rows import Kind
from empd.queue.state import take_released
from empd.store.journal import Row, SqliteJournal

RESERVE_BYTES = 16 << 20
EXIT_JOURNAL = 74
_LOST_BOOTS = 1 << 18  # of the 2^31 that an epoch has room for
_LOST_SESSIONS = 1 << 22  # of the 2^32 that a job id has room for
_FORGET_EVERY_NS = 10 * NS_PER_S
_CURSOR_EVERY_NS = NS_PER_S
_TRIM_EVERY_PASSES = 16
_TICK_NS = 20 * NS_PER_MS
_TURN_NS = 100_000
"""Every job passes here four times, and waits as long as the broker waits for a processor."""
_SPIN_NS = 100_000 if (os.cpu_count() or 1) > 2 else 0
_log = logging.getLogger("empd.broker")


class Broker:
    """One life of the broker."""

    def __init__(self, child: Child) -> None:
        settings = child.settings
        self._child = child
        self._settings = settings
        self._stopping = False
        self._stream_ns: int | None = None
        self._answer_ns: int | None = None
        self._settle_ns: int | None = None
        self._spin_ns = 0
        self._tick_ns = 0
        self._heartbeat_ns = 0
        self._forget_ns = 0
        self._cursor_ns = 0
        self._passes = 0
        self.queue = Queue(queue_policy(settings, child.mapping))
        journal = SqliteJournal.open(
            settings.journal_path,
            durability=settings.durability,
            reserve_bytes=RESERVE_BYTES,
            accept_loss=settings.accept_loss,
        )
        self.ledger = Ledger(journal, self.queue, settings.disk_free_min_bytes, settings.journal_bytes_max)
        self._board = Board.attach(child.board_fd)
        self._activity = self._board.writer(child.slot, Activity)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    # --- the five steps of its life ---

    def serve(self) -> int:
        """Runs until told to stop; returns the exit status."""
        self.startup()
        try:
            self.main_loop()
        except JournalError as error:
            _log.critical("the journal failed, nothing of this pass was sent: %s", error)
            self._context.destroy(linger=0)
            return EXIT_JOURNAL
        self.shutdown()
        return 0

    def startup(self) -> None:
        """Replays, begins a boot, settles claims with the workers that live, opens the sockets."""
        settings = self._settings
        now = clock.now()
        replayed = self.ledger.replay()
        gc.collect()
        gc.freeze()
        gc.set_threshold(200_000, 50, 100)
        self.queue.start(clock.boot_id(), _version(), now, _passed_over(self.ledger.journal.loss))
        self.ledger.commit(now)
        self._clients = Router(self._context, settings.clients_endpoint, settings.curve_dir)
        self._workers = Router(self._context, settings.workers_endpoint)
        self._client_box = Outbox(self._clients)
        self._worker_box = Outbox(self._workers)
        self.stream = Stream(self._clients, self.ledger.journal)
        self.blobs = BlobKeeper(settings.spool_dir, settings.volatile_dir)
        spool_dir, volatile_dir = str(settings.spool_dir), str(settings.volatile_dir)
        host = Host(clock.host_id(), spool_dir, volatile_dir, settings.survives_power_loss)
        self.clients = ClientDesk(Means(self.queue, self.ledger, self._client_box, self.stream, self.blobs), host)
        self.clients.status = self.status
        self.clients.operate = self._operate
        self.workers = WorkerDesk(self.queue, self._worker_box, self.ledger.journal.instance)
        self.neighbours = Neighbours(self._child, self.queue, self.workers, self._board)
        self._by_descriptor: dict[int, Router] = {}
        for router in (self._workers, self._clients):
            self._by_descriptor.update(dict.fromkeys(router.descriptors, router))
        self._poll = select.poll()
        for descriptor in (*self._by_descriptor, self._child.control.fileno()):
            self._poll.register(descriptor, select.POLLIN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self.on_tick(now)
        lifecycle.send(self._child.control, Control(Notice.READY, pid=os.getpid()))
        _log.info(
            "replayed %d rows, %d jobs unfinished, boot %d", replayed, len(self.queue.state.jobs), self.queue.state.boot
        )

    def main_loop(self) -> None:
        """Pass after pass."""
        deadline_ns = 0
        while not self._stopping:
            wait_ms = max(0, min(deadline_ns - time.monotonic_ns() + NS_PER_MS - 1, NS_PER_S) // NS_PER_MS)
            deadline_ns = self.one_pass(self._wait(wait_ms))

    def _wait(self, wait_ms: int) -> set[Router | int]:
        """What is ready within that time, routers and other descriptors; seldom nothing before it is over.

        A ZeroMQ descriptor tells only of what came since its socket was looked at last, so that is done first.
        zmq.Poller does the same in twice as many system calls.
        """
        ready: set[Router | int] = {router for router in (self._workers, self._clients) if router.ready()}
        for descriptor in self._told(0 if ready else wait_ms):
            ready.add(self._by_descriptor.get(descriptor, descriptor))
        self._spin_ns = _SPIN_NS if ready else 0
        return ready

    def _told(self, wait_ms: int) -> list[int]:
        """Descriptors that became readable. Right after traffic the next frame is often a few microseconds away, and
        being woken costs more than looking for it: so it looks for a moment before it sleeps."""
        told: list[tuple[int, int]] = []
        if wait_ms and self._spin_ns:
            until_ns = time.monotonic_ns() + self._spin_ns
            while not told and time.monotonic_ns() < until_ns:
                told = self._poll.poll(0)
        return [descriptor for descriptor, _ in told or self._poll.poll(wait_ms)]

    def one_pass(self, ready: set[Router | int]) -> int:
        """Drain what is ready, decide, commit, send. Returns the steady time of the next deadline."""
        now = clock.now()
        self.queue.tie_clock(now)  # before anything is measured by a wall clock that was set
        self._passes += 1
        if self._workers in ready:
            for identity, data in self._workers.receive():
                self._handle(self.workers, identity, data, now)
        if self._clients in ready:
            for identity, data in self._clients.receive():
                self._handle(self.clients, identity, data, now)
        if self._child.control.fileno() in ready and not self.neighbours.read(now):
            self._stopping = True
        self._stopping = self._stopping or self.neighbours.told_to_stop
        if now.mono_ns >= self._tick_ns:
            self.on_tick(now)
        if self.neighbours.settled:
            self.workers.claims(now)
        self._send(self._react(now), now)
        deadline_ns = self.queue.next_deadline_ns(now)
        self._tick_ns = min(self._tick_ns, deadline_ns)
        for due_ns in (self._stream_ns, self._answer_ns, self._settle_ns):
            if due_ns is not None:
                deadline_ns = min(deadline_ns, due_ns)
        return deadline_ns

    def _handle(self, desk: ClientDesk | WorkerDesk, identity: bytes, data: bytes, now: Instant) -> None:
        seq = self.queue.state.seq
        try:
            desk.handle(identity, data, now)
        # Whatever a peer sends, the others are served. Where nothing was decided yet the frame is answered and
        # dropped; a fault in the middle of a change is left to a replay, which begins from what is committed.
        except Exception as error:
            if self.queue.state.seq != seq:
                raise
            _log.exception("a frame of %d bytes could not be handled", len(data))
            desk.failed(identity, f"{type(error).__name__}: {error}")

    def on_tick(self, now: Instant) -> None:
        """What is due. Its own duties have time for `_TICK_NS`."""
        self._tick_ns = now.mono_ns + _TICK_NS
        for worker, job in self.queue.tick(now):
            self.neighbours.kill(worker, job, now)
        self.ledger.check_disk(now)
        self.ledger.rest(now)
        if now.mono_ns - self._heartbeat_ns >= self._settings.heartbeat_s * NS_PER_S:
            self._heartbeat_ns = now.mono_ns
            self._activity.write(Activity(heartbeat_mono_ns=now.mono_ns))
            self.neighbours.watch_progress(now)
        if now.mono_ns - self._cursor_ns >= _CURSOR_EVERY_NS:
            self._cursor_ns = now.mono_ns
            for consumer, seq in self.stream.cursors().items():
                self.queue.move_cursor(consumer, seq, now)
        if now.mono_ns - self._forget_ns >= _FORGET_EVERY_NS:
            self._forget_ns = now.mono_ns
            self.clients.keep_sessions(now)
            self.queue.forget(now)

    def shutdown(self) -> None:
        """Commits and sends what is left, closes."""
        now = clock.now()
        self._send(self._react(now), now)
        self._clients.close()
        self._workers.close()
        self.ledger.journal.close()
        self.blobs.close()
        self._context.destroy(linger=200)

    # --- the pass's end ---

    def _react(self, now: Instant) -> list[Row]:
        """Commits; puts what follows from the facts into the outboxes."""
        facts = [fact for _, _, fact in self.queue.pending]
        rows = self.ledger.commit(now)
        for fact, row in zip(facts, rows, strict=True):
            if fact.kind is Kind.RESULTS:
                self.clients.results(fact.body, row.body)
            elif fact.kind is Kind.STOPPING:
                self.workers.stopping(fact.body)
        self._answer_ns = self.clients.answer(now.mono_ns)
        return rows

    def _send(self, rows: list[Row], now: Instant) -> None:
        self._settle_ns = self.workers.settle(now.mono_ns, idle=not rows)
        self.workers.lost(self._worker_box.flush())
        self.clients.lost(self._client_box.flush())
        self.blobs.release(take_released(self.queue.state))
        self._stream_ns = self.stream.feed(rows, now.mono_ns)
        self.ledger.journal.checkpoint()
        if not rows or self._passes % _TRIM_EVERY_PASSES == 0:
            consumer = self.queue.state.consumers.get(HISTORY)
            if self.ledger.trim(consumer.seq if consumer else 0, now) and not rows:
                self._stream_ns = now.mono_ns

    def _on_signal(self, number: int, frame: Any) -> None:
        self._stopping = True

    def _operate(self, verb: str) -> None:
        notice = Notice.RELOAD_REQUEST if verb == "reload" else Notice.STOP_REQUEST
        lifecycle.send(self._child.control, Control(notice))

    def status(self) -> dict[str, Any]:
        """The picture for `status`."""
        counters = {
            "bad_client_frames": self.clients.bad_frames,
            "bad_worker_frames": self.workers.bad_frames,
            "passes": self._passes,
            "clients": self.clients.connected,
        }
        return picture(self.queue, self.ledger, counters, clock.now())


def _passed_over(loss: str) -> Lost:
    """Random, so that two lives that go on from the same copy of a journal do not meet again."""
    if not loss:
        return NOTHING_LOST
    _log.warning("%s; ids of boots and sessions go on from further up", loss)
    return Lost(_LOST_BOOTS + secrets.randbelow(_LOST_BOOTS), _LOST_SESSIONS + secrets.randbelow(_LOST_SESSIONS))


def _version() -> str:
    try:
        return version("empd")
    except PackageNotFoundError:
        return "0"


def main(child: Child) -> int:
    """The broker child's entry."""
    prctl.take_short_turns(_TURN_NS)
    logging.basicConfig(level=child.settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    try:
        broker = Broker(child)
    except JournalError as error:
        _log.critical("%s", error)
        return lifecycle.EXIT_OPERATOR
    try:
        return broker.serve()
    except (ConfigError, JournalDamaged) as error:
        _log.critical("%s", error)
        return lifecycle.EXIT_OPERATOR
