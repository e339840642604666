"""Who moves bytes in a synchronous client: the thread that waits.

One thread at a time *leads*: it polls the socket and delivers to everybody. The others wait for their turn on one
condition. So a single thread gets its result without any hand-over. The lock is held while the conversation or the
socket is touched, and released around `poll`, so that other threads can submit meanwhile.

The caretaker is a daemon thread that leads when nobody has for a while although something is open: jobs that were
submitted and left are sent again to a restarted daemon. It sleeps while nothing is open.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable

from empd.client.channel import Channel
from empd.client.conversation import Conversation
from empd.client.exchange import exchange
from empd.client.history import ask_history
from empd.errors import EmpdError, FailureClass, Refused

CARETAKER_NAP_S = 0.02
LED_NAP_S = 0.1
CARETAKER_AFTER_NS = 100_000_000
HISTORY_LAG_NS = 20_000_000
LEAVE_TIMEOUT_S = 1.0
LOOK_AGAIN_NS = 50_000
FLUSH_AFTER_NS = 10_000_000  # a gathered frame whose acknowledgement nobody has fetched


class Pump:
    """The channel, the conversation, and the turn-taking of threads around them."""

    def __init__(self, channel: Channel, conversation: Conversation, history_endpoint: str) -> None:
        self.channel = channel
        self.conversation = conversation
        self._history_endpoint = history_endpoint
        self.lock = threading.Lock()
        self._turn = threading.Condition(self.lock)
        self._leading = False
        self._caretaking = False
        self._waiting = 0
        self._pumped_ns = 0
        self._closing = False
        self._abandoned = False
        self._stopped = threading.Event()
        self._busy = threading.Event()
        self._caretaker: threading.Thread | None = None
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        for descriptor in (*channel.descriptors, self._wake_fd):
            self._poll.register(descriptor, select.POLLIN)
        # Reentrant: the collector may call `abandon` in a thread that wakes somebody just now.
        self._wake_lock = threading.RLock()

    def check(self) -> None:
        """Raises what ended the conversation, if it is over."""
        if self.conversation.failed is not None:
            raise self.conversation.failed

    def exchange(self) -> None:
        """Takes all that has come and sends all that is to go. The lock must be held.

        Returns only when the descriptors, which are edge-triggered, are safe to poll.
        """
        if self.conversation.failed is not None:
            return
        self._pumped_ns = time.monotonic_ns()
        if exchange(self.channel, self.conversation):
            self.tell()
        if not self._busy.is_set() and self.conversation.busy:
            self._rouse_caretaker()

    def submitted(self) -> None:
        """A job was submitted: moves bytes. The lock must be held.

        While its frame waits for the answer to another and jobs come one after the other, the socket is looked at only
        now and then: to look takes as long as all the rest of a submit. What comes meanwhile stays told by the
        descriptors.
        """
        if self.conversation.submissions.held_back and time.monotonic_ns() - self._pumped_ns < LOOK_AGAIN_NS:
            return
        self.exchange()

    def tell(self) -> None:
        """Something came or was settled: whoever waits looks again. The lock must be held."""
        if self._waiting:
            self._turn.notify_all()
        if self._leading:
            self._wake()

    def wait(self, done: Callable[[], object], deadline_ns: int | None) -> bool:
        """Moves bytes until `done()`; False when the deadline (monotonic) passed first.

        `done` is called with the lock held. Raises what ended the conversation.
        """
        with self.lock:
            return self.wait_locked(done, deadline_ns)

    def wait_locked(self, done: Callable[[], object], deadline_ns: int | None) -> bool:
        """`wait` for a caller that holds the lock; it is released in between."""
        try:
            while not done():
                self.check()
                left_s = None if deadline_ns is None else (deadline_ns - time.monotonic_ns()) / 1e9
                if left_s is not None and left_s <= 0:
                    return False
                if self._leading:
                    self._follow(left_s)
                else:
                    self._lead(left_s)
            return True
        finally:
            if self._waiting and not self._leading:
                self._turn.notify()  # one of those who wait must lead now

    def wait_known(self, done: Callable[[], object], deadline_ns: int | None) -> bool:
        """`wait_locked`, which also asks history for jobs that the broker has forgotten."""
        conversation = self.conversation
        while self.wait_locked(lambda: done() or conversation.unknown, deadline_ns):
            if done():
                return True
            if deadline_ns is not None and time.monotonic_ns() >= deadline_ns:
                return False
            self._ask_history(conversation.take_unknown())
        return False

    def _ask_history(self, ids: list[int]) -> None:
        if not ids:
            return
        lookups = self.conversation.lookups
        self.lock.release()
        try:
            answer = ask_history(self._history_endpoint, ids)
        except EmpdError:
            # Not the jobs' end: whoever waits for them next asks again.
            lookups.put_back(ids)
            raise
        finally:
            self.lock.acquire()
        lookups.answered(ids, answer)
        self.tell()
        if lookups.unknown:
            # History reads the journal a moment behind the broker.
            self.wait_locked(lambda: False, time.monotonic_ns() + HISTORY_LAG_NS)

    def _follow(self, timeout_s: float | None) -> None:
        """Waits for the leader's news, or for its place."""
        if self._caretaking:
            self._wake()
        self._waiting += 1
        try:
            self._turn.wait(timeout_s)
        finally:
            self._waiting -= 1

    def _lead(self, timeout_s: float | None) -> None:
        """One round as the leader: polls, with the lock released, and exchanges."""
        due_ns = self.conversation.deadline_ns()
        if due_ns is not None:
            due_s = max(0.0, (due_ns - time.monotonic_ns()) / 1e9)
            timeout_s = due_s if timeout_s is None else min(timeout_s, due_s)
        self._leading = True
        try:
            self.lock.release()
            try:
                ready = self._poll.poll(None if timeout_s is None else int(timeout_s * 1000) + 1)
            finally:
                self.lock.acquire()
        finally:
            self._leading = False
        if any(descriptor == self._wake_fd for descriptor, _ in ready):
            os.eventfd_read(self._wake_fd)
        if not self.channel.closed:
            self.exchange()

    # --- the caretaker -------------------------------------------------------------------------------------------

    def _rouse_caretaker(self) -> None:
        self._busy.set()
        if self._caretaker is None and not self._closing:
            caretaker = threading.Thread(target=self._caretake, name="empd-client", daemon=True)
            caretaker.start()
            self._caretaker = caretaker  # only now: `close` joins it, whatever has interrupted its start

    def _caretake(self) -> None:
        while not (self._closing or self._abandoned):
            self._busy.wait()
            self._stopped.wait(LED_NAP_S if self._leading else CARETAKER_NAP_S)
            with self.lock:
                if not self.conversation.busy or self.conversation.failed is not None:
                    self._busy.clear()
                elif not self._leading and self._neglected():
                    self._caretake_round()
        self._discard()

    def _neglected(self) -> bool:
        idle_ns = time.monotonic_ns() - self._pumped_ns
        return idle_ns > (FLUSH_AFTER_NS if self.conversation.submissions.gathering else CARETAKER_AFTER_NS)

    def _caretake_round(self) -> None:
        """Leads until somebody else wants to, or nothing is open."""
        conversation = self.conversation
        self._caretaking = True
        try:
            while conversation.busy and not (self._waiting or self._closing or self._abandoned or conversation.failed):
                self._lead(None)
        finally:
            self._caretaking = False
            if self._waiting:
                self._turn.notify()

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self, error: EmpdError, linger_s: float) -> None:
        """Stops the caretaker, ends everything open with `error`, closes the socket."""
        with self.lock:
            if self._closing:
                return
            self._closing = True
            self._stopped.set()
            self._busy.set()
            self._wake()
            caretaker = self._caretaker
        if caretaker is not None and caretaker is not threading.current_thread():
            caretaker.join(LEAVE_TIMEOUT_S)
        with self.lock:
            self.conversation.fail(error)
            self._turn.notify_all()
            # A leader in another thread comes back from its poll before the descriptors go.
            self._wake()
            self._waiting += 1
            self._turn.wait_for(lambda: not self._leading, LEAVE_TIMEOUT_S)
            self._waiting -= 1
            self.channel.close(linger_s)
        with self._wake_lock:
            os.close(self._wake_fd)
            self._wake_fd = -1

    def abandon(self) -> None:
        """The client was dropped without `close`. The collector calls this in any thread, so it must not wait for
        the lock while the caretaker may hold it."""
        if self._closing:
            return
        self._abandoned = True
        if self._caretaker is None:
            self._discard()
            return
        self._stopped.set()
        self._busy.set()
        self._wake()

    def _wake(self) -> None:
        """Has the leader come back from its poll. Any thread may call it, also one that meets the end of the pump."""
        with self._wake_lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _discard(self) -> None:
        self.close(Refused(FailureClass.UNAVAILABLE, "this client was dropped"), 0.0)

    def forked(self, error: EmpdError) -> None:
        """In a child of fork: nothing here is usable, and the parent's lock may be held for ever."""
        self.lock = threading.Lock()
        self._turn = threading.Condition(self.lock)
        self._closing = True
        self.conversation.failed = error
