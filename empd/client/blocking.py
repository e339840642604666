"""`Client`: the conversation for programs without an event loop."""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Unpack

from empd.client.bulk import Bulk
from empd.client.channel import Channel
from empd.client.conversation import Conversation
from empd.client.endpoint import find_endpoint, find_history, find_keys, no_answer
from empd.client.jobs import JobHandle, JobSet, deadline_after
from empd.client.options import Identified, OptionsEncoder, SubmitOptions, as_number, listed
from empd.client.payloads import Payloads, many
from empd.client.pump import Pump
from empd.client.submissions import JOBS_PER_FRAME
from empd.errors import EmpdError, FailureClass, NotRunning, Refused
from empd.payload import BlobRef
from empd.record import Record
from empd.result import JobStatus
from empd.wire import frames
from empd.wire.frames import Reset, Rows

WINDOW = 20_000
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 5.0
EXIT_TIMEOUT_S = 2.0
CLOSE_LINGER_S = 0.5

_log = logging.getLogger(__name__)
_clients: weakref.WeakSet[Client] = weakref.WeakSet()


class Client:
    """A client of one daemon; all its methods may be called from any thread.

        with Client() as client:
            print(client.submit("square", {"x": 3}).result())

    `endpoint` defaults to the local daemon; a tcp one is spoken with the CURVE keys in `curve_dir`. `window` bounds the
    jobs submitted and not ended: `submit` waits while it is full. Raises NotRunning when no daemon answers within
    `connect_timeout_s`, or it does not take the key. Later on a daemon that restarts is waited for: jobs that it has
    accepted are asked for, the others are sent again, none twice.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        window: int = WINDOW,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        name: str = "",
        history_endpoint: str | None = None,
        curve_dir: str | Path | None = None,
    ) -> None:
        self.endpoint = find_endpoint(endpoint)
        self.history_endpoint = history_endpoint or find_history(self.endpoint)
        self.window = window
        self._options = OptionsEncoder()
        self._conversation = Conversation(name)
        channel = Channel(self.endpoint, find_keys(self.endpoint, curve_dir))
        self._pump = Pump(channel, self._conversation, self.history_endpoint)
        _clients.add(self)
        # A client that is dropped without close() leaves its caretaker behind, which must then end by itself.
        self._finalizer = weakref.finalize(self, self._pump.abandon)
        self._finalizer.atexit = False
        self._payloads = self._greet(connect_timeout_s)

    def _greet(self, timeout_s: float) -> Payloads:
        conversation = self._conversation
        try:
            answered = self._pump.wait(lambda: conversation.ready, deadline_after(timeout_s))
        except EmpdError as error:
            self._pump.close(error, 0.0)
            raise
        if not answered or conversation.welcome is None:
            silence = no_answer(self.endpoint)
            self._pump.close(silence, 0.0)
            raise silence
        return Payloads(conversation.welcome)

    # --- jobs in -------------------------------------------------------------------------------------------------

    def submit(
        self, service: str, payload: Any, *, idempotency_key: str | None = None, **options: Unpack[SubmitOptions]
    ) -> JobHandle:
        """Submits one job and returns at once; `result()` waits for its end.

        `payload`: any value that msgpack can carry, or bytes as they are. Raises TypeError for one that it cannot,
        Refused for options or sizes that no daemon would take. What the daemon refuses is raised by `result()`.
        """
        encoding, carried = self._payloads.encode(payload)
        raw = self._options.encode(service, encoding, options)
        handle = JobHandle(0, self)
        pump, conversation = self._pump, self._conversation
        with pump.lock:
            pump.check()
            if len(conversation.open) >= self.window:
                self._pump.wait_known(lambda: len(conversation.open) < self.window, None)
            conversation.submit(handle, raw, carried, idempotency_key or "")
            pump.submitted()
        return handle

    def submit_many(
        self,
        service: str,
        payloads: Iterable[Any],
        *,
        idempotency_keys: Iterable[str] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> JobSet:
        """Submits a job for each payload, in frames of up to 256; waits while the window is full.

        Raises like `submit`; the jobs before a payload that has no encoding are submitted then.
        """
        jobs = JobSet(self)
        left, keys = many(payloads), None if idempotency_keys is None else iter(idempotency_keys)
        size = max(1, min(JOBS_PER_FRAME, self.window))
        encode, encode_options = self._payloads.encode, self._options.encode
        pump, conversation = self._pump, self._conversation
        while chunk := list(islice(left, size)):
            encoded = [encode(payload) for payload in chunk]
            raws = {encoding: encode_options(service, encoding, options) for encoding in {pair[0] for pair in encoded}}
            with pump.lock:
                pump.check()
                room = self.window - len(chunk)
                if len(conversation.open) > room:
                    self._pump.wait_known(lambda room=room: len(conversation.open) <= room, None)  # type: ignore[misc]
                conversation.submit_many(jobs.add(len(chunk)), encoded, raws, keys)
                pump.exchange()
        return jobs

    def flush(self, timeout: float | None = None) -> bool:
        """Waits until every submitted job is acknowledged or refused; False after `timeout` seconds."""
        return self.wait_for(lambda: self._conversation.flushed, deadline_after(timeout))

    # --- what is known -------------------------------------------------------------------------------------------

    def job(self, job_id: str | int) -> JobHandle:
        """A handle for any job. Raises ValueError when it is no id, Refused (not_found) when nobody knows the job."""
        number = as_number(job_id)
        with self._pump.lock:
            mine = self._conversation.open.get(number)
        if isinstance(mine, JobHandle):
            return mine
        handle = JobHandle(number, self, foreign=True)
        self.ask_status(handle)
        if isinstance(handle.error, Refused):
            raise handle.error
        return handle

    def status(self) -> dict[str, Any]:
        """The daemon's picture of its queues, its workers and itself."""
        body: dict[str, Any] = self._request(frames.Status)
        return body

    def jobs(self, **filters: Any) -> Iterator[JobStatus]:
        """The unfinished and dead-lettered jobs that fit the filters (fields of JobFilter), page by page."""
        selected = frames.JobFilter(**filters)
        while True:
            body = self._request(lambda number: frames.List(number, selected))
            yield from map(listed, body["jobs"])
            if body.get("cursor") is None:
                return
            selected.cursor, selected.after = body["cursor"], body["after"]

    def cancel(
        self, jobs: Iterable[Identified | str | int] = (), *, dry_run: bool = False, **filters: Any
    ) -> dict[str, list[str]]:
        """Asks to stop jobs, by id or by filters (fields of JobFilter). Returns ids under `cancelled`, `cancelling`
        (they end when their work has stopped) and `unknown` (ended, or never here); `would_cancel` for a dry run."""
        return self._bulk(Bulk(frames.Cancel, jobs, dry_run, filters))

    def retry(
        self, jobs: Iterable[Identified | str | int] = (), *, dry_run: bool = False, **filters: Any
    ) -> dict[str, list[str]]:
        """Gives dead-lettered jobs another chance. Returns ids under `retried` and `not_dead`; `would_retry` for a
        dry run."""
        return self._bulk(Bulk(frames.Retry, jobs, dry_run, filters))

    def _bulk(self, bulk: Bulk) -> dict[str, list[str]]:
        while (make := bulk.following()) is not None:
            bulk.answered(self._request(make))
        return bulk.found

    def operate(self, verb: str, workers: Iterable[str] = ()) -> dict[str, Any]:
        """An operator's verb: `drain`, `resume`, `reload` or `stop`, for some workers or for all."""
        body: dict[str, Any] = self._request(lambda number: frames.Operate(number, verb, list(workers)))
        return body

    def subscribe(self, consumer: str, from_seq: int = 0, kinds: Iterable[int] = ()) -> Iterator[Rows | Reset]:
        """The journal from `from_seq` on, as it grows. Taking the next frame says that the one before is processed."""
        conversation, pump = self._conversation, self._pump
        subscribe = frames.Subscribe(consumer, from_seq, kinds=list(kinds))
        with pump.lock:
            pump.check()
            subscription = conversation.subscribe(subscribe)
            pump.exchange()
        try:
            while True:
                self.wait_for(lambda: subscription.frames, None)
                frame = subscription.frames.popleft()
                yield frame
                with pump.lock:
                    conversation.acknowledge(subscription, frame)
                    pump.exchange()
        finally:
            conversation.subscriptions.pop(consumer, None)

    def read_blob(self, ref: BlobRef) -> bytes:
        """A blob's content. Raises BlobMissing."""
        return self._payloads.read(ref)

    # --- waiting -------------------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Takes what has come, without waiting."""
        with self._pump.lock:
            self._pump.check()
            self._pump.exchange()

    def wait_for(self, done: Callable[[], object], deadline_ns: int | None) -> bool:
        """Moves bytes until `done()`; False when the deadline (monotonic) passed."""
        with self._pump.lock:
            return self._pump.wait_known(done, deadline_ns)

    def settle(self, handle: JobHandle, deadline_ns: int | None) -> bool:
        """Waits for the end of one job; False when the deadline passed."""
        with self._pump.lock:
            self._follow(handle)
            try:
                return self._pump.wait_known(lambda: handle.ended, deadline_ns)
            finally:
                self._release(handle)

    def ask_status(self, handle: JobHandle) -> JobStatus:
        """Asks for the present state of a job, history included."""
        with self._pump.lock:
            self._follow(handle)
            try:
                [request] = self._conversation.ask([handle.number])
                self._pump.exchange()
                self._pump.wait_known(lambda: request.ended, None)
                statuses: list[JobStatus] = request.value()
                if not handle.ended and handle.batch is None and statuses[0].state == "unknown":
                    self._pump.wait_known(lambda: handle.ended, None)
            finally:
                self._release(handle)
        return handle.final_status() if handle.ended else statuses[0]

    def _follow(self, handle: JobHandle) -> None:
        if handle.foreign and not handle.ended:
            self._conversation.submissions.adopt(handle)

    def _release(self, handle: JobHandle) -> None:
        if handle.foreign and not handle.ended:
            self._conversation.submissions.release(handle)

    def _request(self, make: Callable[[int], Record]) -> Any:
        with self._pump.lock:
            self._pump.check()
            request = self._conversation.request(make)
            self._pump.exchange()
            if not self._pump.wait_known(lambda: request.ended, deadline_after(REQUEST_TIMEOUT_S)):
                raise NotRunning(f"no answer from {self.endpoint} for {REQUEST_TIMEOUT_S:.0f} s; is the daemon up?")
        return request.value()

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self, timeout: float = CLOSE_TIMEOUT_S) -> None:
        """Waits up to `timeout` seconds until what was submitted is acknowledged, then ends the conversation.

        Accepted jobs go on; their handles here raise Refused from now on. Closing twice is fine. Raises NotRunning at
        the end when jobs were left that the daemon had not acknowledged.
        """
        _clients.discard(self)
        conversation, left_behind = self._conversation, None
        if conversation.failed is None:
            try:
                self.flush(timeout)
                with self._pump.lock:
                    left_behind = conversation.submissions.left_behind(timeout)
                    conversation.bye(forget=True)
                    self._pump.exchange()
            except EmpdError:
                pass  # the conversation broke while it was closing: nothing is left to be flushed
        self._pump.close(Refused(FailureClass.UNAVAILABLE, "this client is closed"), CLOSE_LINGER_S)
        if left_behind is not None:
            raise left_behind

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except NotRunning:
            if error is None:  # else that one says more
                raise

    def _forked(self) -> None:
        reason = "this client was made before os.fork(); make a new Client in the child"
        self._pump.forked(Refused(FailureClass.REFUSED, reason))


def _close_all() -> None:
    for client in list(_clients):
        try:
            client.close(EXIT_TIMEOUT_S)
        except NotRunning as error:
            _log.error("%s", error)


def _fork_all() -> None:
    for client in list(_clients):
        client._forked()
    _clients.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_fork_all)
