"""`Client` over real sockets: threads, restarts, bad bytes, fork, the arena, history."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from client_model import ModelBroker, failing, serving

from empd import payload as carrying
from empd.client import Client, pump
from empd.client.history import ask_history
from empd.errors import BlobMissing, FailureClass, JobCancelled, NotRunning, ProtocolError, Refused, ResultTimeout
from empd.job import Submit, format_id
from empd.memory.arena import Arena
from empd.payload import BlobRef, Carried
from empd.result import FinishedGroup, FinishedJob, Refusal
from empd.wire import codec, frames


def waiting(number: int, payload: Carried) -> FinishedJob | None:
    """A job that runs until it is finished."""
    return None


def wait_until(condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
    """Polls a condition, bounded."""
    deadline = time.monotonic() + timeout_s
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        tick.wait(0.005)


def test_values_come_back_as_they_went(folder: Path) -> None:
    with serving(folder, ModelBroker()) as double, Client(double.endpoint) as client:
        for value in ({"x": [1, 2.5, None, "ü"]}, "text", 7, b"\x01", None, [b"raw"]):
            packed = msgspec.msgpack.encode(value)
            assert client.submit("s", packed).result(60) == value
        handle = client.submit("s", {"x": 3})
        assert handle.result(60) == {"x": 3}
        assert handle.done()
        assert handle.exception() is None
        assert handle.id == format_id(handle.number)
        assert repr(handle) == f"<JobHandle {handle.id} completed>"
        status = handle.status()
        assert (status.state, status.service, status.worker, status.attempts) == ("completed", "s", "cpu0", 1)


def test_many_come_back_in_order_and_as_completed(folder: Path) -> None:
    with serving(folder, ModelBroker()) as double, Client(double.endpoint, window=1_000) as client:
        jobs = client.submit_many("s", ({"n": n} for n in range(5_000)))
        assert len(jobs) == 5_000
        assert [value["n"] for value in jobs.results(60)] == list(range(5_000))
        for _ in range(2):
            assert {handle.number for handle in jobs.as_completed(5)} == {handle.number for handle in jobs}
        assert jobs[0].result() == {"n": 0}
        assert len(client.submit_many("s", [])) == 0


def test_single_submits_in_a_row_do_not_look_at_the_socket_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "LOOK_AGAIN_NS", 1 << 62)
    model = ModelBroker()
    with serving(folder, model) as double, Client(double.endpoint) as client:
        channel, looks = client._pump.channel, 0

        def nothing() -> list[bytes]:
            nonlocal looks
            looks += 1
            return []

        with monkeypatch.context() as deaf:
            deaf.setattr(channel, "receive", nothing)
            handles = [client.submit("s", {"n": n}) for n in range(600)]
        assert looks < 100, "only what could be sent at once made it look, and the caretaker"
        client.poll()
        assert [handle.result(60)["n"] for handle in handles] == list(range(600))
        sizes = [len(group.payloads) for frame in model.seen if isinstance(frame, Submit) for group in frame.groups]
        assert sum(sizes) == 600
        assert max(sizes) == 256, "a full frame waits for nobody"


def test_options_travel(folder: Path) -> None:
    model = ModelBroker()
    with serving(folder, model) as double, Client(double.endpoint) as client:
        first = client.submit("s", 1)
        when = datetime(2030, 1, 1, tzinfo=UTC)
        labels = {"a": "b"}
        client.submit(
            "s", 1, priority=90, timeout_s=2.0, retries=3, not_before=when, after=[first, first.id, 5],
            requirements={"vram": 8}, customer_id="c", workflow_id="w", labels=labels, model_keys=["m"],
        ).result(60)  # fmt: skip
        labels["a"] = "changed"
        client.submit("s", 1, labels=labels).result(60)
        raws = [group.options for frame in model.seen if isinstance(frame, Submit) for group in frame.groups]
        options = [codec.decode_options(bytes(raw)) for raw in raws]
        sent, changed = options[1], options[2]
        assert (sent.priority, sent.timeout_s, sent.retries, sent.not_before) == (90, 2.0, 3, when.timestamp())
        assert sent.after == (first.number, first.number, 5)
        assert (sent.requirements, sent.customer_id, sent.labels) == ({"vram": 8}, "c", {"a": "b"})
        assert changed.labels == {"a": "changed"}
        with pytest.raises(TypeError, match="priorty"):
            client.submit("s", 1, priorty=1)  # type: ignore[call-arg]
        with pytest.raises(Refused, match="priority='high'"):
            client.submit("s", 1, priority="high")  # type: ignore[typeddict-item]


def test_failures_and_refusals_are_raised(folder: Path) -> None:
    model = ModelBroker(failing(2, "cancelled"))
    model.refuse[b"bad"] = Refusal(0, "unmatchable", "no worker offers it")
    with serving(folder, model) as double, Client(double.endpoint) as client:
        handle = client.submit("s", b"x")
        with pytest.raises(JobCancelled, match="as told") as caught:
            handle.result(60)
        assert caught.value.evidence == "evidence"
        refused = client.submit("s", b"bad")
        assert refused.accepted(5) is False
        with pytest.raises(Refused, match="no worker offers it"):
            refused.result(60)
        assert refused.status().state == "refused"
        assert client.submit("s", b"y").accepted(5)
        with pytest.raises(Refused):
            client.submit_many("s", [b"bad", b"bad"]).results(60)


def test_a_result_that_takes_too_long_leaves_the_job_alone(folder: Path) -> None:
    with serving(folder, ModelBroker(waiting)) as double, Client(double.endpoint) as client:
        jobs = client.submit_many("s", [b"\x01", b"\x02"])
        with pytest.raises(ResultTimeout, match="it goes on"):
            jobs[0].result(0.05)
        with pytest.raises(TimeoutError):
            list(jobs.as_completed(0.05))
        with pytest.raises(ResultTimeout):
            jobs.results(0.05)
        assert not jobs[0].done()
        assert jobs[0].status().state == "waiting"
        double.finish()
        assert jobs.results(60) == [1, 2]


def test_cancel_and_events(folder: Path) -> None:
    with serving(folder, ModelBroker(waiting)) as double, Client(double.endpoint) as client:
        first, second, third = (client.submit("s", b"\x01") for _ in range(3))
        events = first.events()
        assert next(events).state == "waiting"
        assert first.cancel() is True
        assert [status.state for status in events] == ["cancelled"]
        assert isinstance(first.exception(1), JobCancelled)
        assert first.cancel() is False
        assert client.cancel([second, third.id, 999]) == {
            "cancelled": [second.id, third.id], "cancelling": [], "unknown": [format_id(999)],
        }  # fmt: skip
        assert client.submit_many("s", [b"", b""]).cancel() == 2
        with pytest.raises(ValueError, match="empty selection"):
            client.cancel()


def test_the_window_bounds_what_is_open(folder: Path) -> None:
    with serving(folder, ModelBroker(waiting)) as double, Client(double.endpoint, window=10) as client:
        done = threading.Event()

        def submit() -> None:
            client.submit_many("s", [b"\x01"] * 35)
            done.set()

        thread = threading.Thread(target=submit)
        thread.start()
        wait_until(lambda: len(double.model.taken) == 10)
        for taken in (20, 30, 35):
            assert not done.is_set()
            double.finish()
            wait_until(lambda taken=taken: len(double.model.taken) == taken)
        thread.join(60)
        assert done.is_set()
        double.finish()


def test_threads_share_one_client(folder: Path) -> None:
    with serving(folder, ModelBroker()) as double, Client(double.endpoint, window=200) as client:

        def hammer(thread: int) -> int:
            right = 0
            for n in range(150):
                value = [thread, n]
                if n % 10 == 0:
                    right += client.submit_many("s", [value] * 10).results(60) == [value] * 10
                else:
                    right += client.submit("s", value).result(60) == value
            return right

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(hammer, range(8))) == [150] * 8
        assert len(double.model.taken) == 8 * (15 * 10 + 135)


def test_waiting_threads_outlive_each_other(folder: Path) -> None:
    """A leader that leaves hands over; followers with short time-outs do not take the turn with them."""
    with serving(folder, ModelBroker(waiting)) as double, Client(double.endpoint) as client:
        handles = [client.submit("s", bytes([n])) for n in range(8)]
        raised: list[int] = []

        def wait(n: int) -> Any:
            if n % 2:
                with pytest.raises(ResultTimeout):
                    handles[n].result(0.02 * n)
                raised.append(n)
            return handles[n].result(60)

        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(wait, n) for n in range(8)]
            wait_until(lambda: len(raised) == 4 and client._pump._waiting == 7)
            for _ in range(8):
                double.finish(1)
            assert [future.result(60) for future in futures] == list(range(8))


def test_a_restart_in_the_middle_loses_nothing(folder: Path) -> None:
    """The daemon dies five times while jobs are submitted and waited for."""
    with serving(folder, ModelBroker()) as double, Client(double.endpoint, window=500) as client:
        stop = threading.Event()

        def restart() -> None:
            for _ in range(5):
                stop.wait(0.05)
                double.stop()
                stop.wait(0.02)
                double.start()

        killer = threading.Thread(target=restart)
        killer.start()
        values: list[int] = []
        submitted = 0
        while killer.is_alive() or submitted < 1_000:
            values += client.submit_many("s", range(submitted, submitted + 300)).results(60)
            values.append(client.submit("s", submitted + 300).result(60))
            submitted += 301
        killer.join()
        assert values == list(range(submitted))
        assert len(double.model.taken) == submitted
        assert set(double.model.taken.values()) == {1}


def test_jobs_left_alone_reach_a_restarted_daemon(folder: Path) -> None:
    """Nobody waits: the caretaker notices the new daemon and sends again what the old one had not taken."""
    with serving(folder, ModelBroker()) as double, Client(double.endpoint) as client:
        double.deaf = True
        for n in range(300):
            client.submit("s", n)
        double.stop()
        double.deaf = False
        double.start()
        wait_until(lambda: len(double.model.taken) == 300)
        assert set(double.model.taken.values()) == {1}
        wait_until(lambda: not client._conversation.busy)


def test_a_wiped_daemon_is_told_from_a_restarted_one(folder: Path) -> None:
    with serving(folder, ModelBroker(waiting)) as double, Client(double.endpoint) as client:
        handle = client.submit("s", b"\x01")
        assert handle.accepted(5)
        double.stop(wipe=True)
        double.start()
        with pytest.raises(Exception, match="no longer knows this session") as caught:
            handle.result(60)
        assert caught.value.failure is FailureClass.HOST_LOST  # type: ignore[attr-defined]
        again = client.submit("s", b"\x02")
        assert again.accepted(5)
        double.finish()
        assert again.result(60) == 2


def test_no_daemon_is_said_in_one_line(folder: Path) -> None:
    with pytest.raises(NotRunning, match=r"no empd answers at ipc://.*; start it with `empd run` or set EMPD_ENDPOINT"):
        Client(f"ipc://{folder}/nobody.sock", connect_timeout_s=0.05)
    (folder / "pid").write_text(str(os.getpid()))
    with pytest.raises(NotRunning, match=r"the daemon at ipc://.* runs, but does not answer: it may be starting"):
        Client(f"ipc://{folder}/nobody.sock", connect_timeout_s=0.05)


def test_the_endpoint_comes_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(folder, ModelBroker()) as double:
        monkeypatch.setenv("EMPD_ENDPOINT", double.endpoint)
        with Client() as client:
            assert client.status() == {"waiting": 0}
        monkeypatch.delenv("EMPD_ENDPOINT")
        monkeypatch.setenv("EMPD_RUNTIME_DIR", str(folder))
        with Client() as client:
            assert client.endpoint == double.endpoint
            assert client.history_endpoint == f"ipc://{folder}/history.sock"


def test_bytes_that_are_no_frame_wake_everybody(folder: Path) -> None:
    with serving(folder, ModelBroker(waiting)) as double, Client(double.endpoint) as client:
        handles = [client.submit("s", b"\x01") for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(handle.result, 20) for handle in handles]
            wait_until(lambda: client._pump._waiting == 3)
            double.say(b"\xff\x00 no frame")
            for future in futures:
                with pytest.raises(ProtocolError):
                    future.result(60)
        with pytest.raises(ProtocolError):
            client.submit("s", b"\x01")


def test_closing_ends_what_is_open(folder: Path) -> None:
    with serving(folder, ModelBroker(waiting)) as double:
        client = Client(double.endpoint)
        handle = client.submit("s", b"\x01")
        with ThreadPoolExecutor(1) as pool:
            waiter = pool.submit(handle.result, 20)
            wait_until(lambda: client._pump._leading)
            client.close()
            with pytest.raises(Refused, match="closed"):
                waiter.result(60)
        client.close()
        with pytest.raises(Refused, match="closed"):
            client.submit("s", b"\x01")
        assert isinstance(double.model.seen[-1], frames.Bye)
        assert double.model.taken


def test_closing_with_a_dead_daemon_is_bounded(folder: Path) -> None:
    with serving(folder, ModelBroker(waiting)) as double:
        client = Client(double.endpoint)
        double.stop()
        client.submit("s", b"\x01")
        begun = time.monotonic()
        with pytest.raises(NotRunning, match=r"1 job was not acknowledged within 0\.1 s: the daemon may not have it"):
            client.close(timeout=0.1)
        assert time.monotonic() - begun < 3
        client.close()
        double.start()


def test_leaving_with_jobs_that_nobody_acknowledged_is_told_unless_something_worse_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client.close, "__defaults__", (0.1,))
    with serving(folder, ModelBroker(waiting)) as double:
        with pytest.raises(NotRunning, match="2 jobs were not acknowledged"), Client(double.endpoint) as client:
            double.stop()
            client.submit_many("s", [1, 2])
        double.start()
        with pytest.raises(KeyError), Client(double.endpoint) as client:
            double.stop()
            client.submit("s", 1)
            raise KeyError
        double.start()


def test_a_dropped_client_leaves_nothing_behind(folder: Path) -> None:
    with serving(folder, ModelBroker()) as double:
        before = len(os.listdir("/proc/self/fd"))
        for submits in (False, True):
            client = Client(double.endpoint)
            if submits:
                client.submit("s", b"\x01").result(60)
            dropped = weakref.ref(client)
            del client
            gc.collect()
            assert dropped() is None
        wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "empd-client"])
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)


def test_a_child_of_fork_is_told_to_make_its_own(folder: Path) -> None:
    with serving(folder, ModelBroker()) as double, Client(double.endpoint) as client:
        assert client.submit("s", 1).result(60) == 1
        child = os.fork()
        if child == 0:
            status = 1
            try:
                client.submit("s", 2)
            except Refused as error:
                status = 0 if "before os.fork()" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.submit("s", 3).result(60) == 3


def test_what_was_submitted_is_flushed_at_exit(folder: Path) -> None:
    with serving(folder, ModelBroker(waiting)) as double:
        program = "import sys; from empd import Client; c = Client(sys.argv[1]); [c.submit('s', n) for n in range(500)]"
        subprocess.run([sys.executable, "-c", program, double.endpoint], check=True, timeout=60)
        wait_until(lambda: len(double.model.taken) == 500)


def test_large_payloads_and_results_go_through_the_arena(folder: Path) -> None:
    (folder / "spool").mkdir(mode=0o700)
    model = ModelBroker(spool=str(folder / "spool"), volatile=str(folder / "volatile"))
    with serving(folder, model) as double, Client(double.endpoint) as client:
        large = os.urandom(3 << 20)
        jobs = client.submit_many("s", [large, memoryview(large), {"image": large}, b"\x01"])
        assert jobs.results(60) == [large, large, {"image": large}, 1]
        sent = [p for f in model.seen if isinstance(f, Submit) for group in f.groups for p in group.payloads]
        assert [type(payload) is BlobRef for payload in sent] == [True, True, True, False]
        blob = Arena(folder / "spool", folder / "volatile").put(b"mine", durable=False, encoding="bytes")
        assert client.submit("s", blob).result(60) == b"mine"
        missing = msgspec.structs.replace(blob, id="0" * 32)
        with pytest.raises(BlobMissing):
            client.submit("s", missing).result(60)


def test_another_users_daemon_gets_no_blobs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelBroker(spool=str(folder / "spool"), volatile=str(folder / "volatile"))
    (folder / "spool").mkdir(mode=0o700)
    another = os.geteuid() + 12345
    monkeypatch.setattr(os, "geteuid", lambda: another)
    with serving(folder, model) as double, Client(double.endpoint) as client:
        with pytest.raises(Refused, match="runs as another user: POST the payload to /v1/blobs"):
            client.submit("s", bytes(100_000))
        assert client.submit("s", b"\x01").result(60) == 1
    assert list((folder / "spool").iterdir()) == []


def test_a_distant_daemon_gets_no_blobs(folder: Path) -> None:
    model = ModelBroker()
    model.host = "elsewhere"
    with serving(folder, model) as double, Client(double.endpoint) as client:
        with pytest.raises(Refused, match="is on another host: POST the payload to /v1/blobs"):
            client.submit("s", bytes(carrying.INLINE_BYTES_MAX + 1))
        with pytest.raises(BlobMissing, match="GET it from /v1/blobs/"):
            client.submit("s", BlobRef("ab" * 16, 4, 0)).result(60)


def test_an_option_that_does_not_fit_is_named(folder: Path) -> None:
    with serving(folder, ModelBroker()) as double, Client(double.endpoint) as client:
        with pytest.raises(Refused, match=r"priority='high' does not fit \(expected `int`, got `str`\)$"):
            client.submit("s", 1, retries=2, priority="high")  # type: ignore[arg-type]
        with pytest.raises(Refused, match=r"retries=1\.5 does not fit .*; labels=.* does not fit"):
            client.submit("s", 1, retries=1.5, labels={"a": 1})  # type: ignore[arg-type, dict-item]


def test_what_has_no_encoding_is_a_type_error(folder: Path) -> None:
    with serving(folder, ModelBroker()) as double, Client(double.endpoint) as client:
        with pytest.raises(TypeError, match="a path is not read by itself"):
            client.submit("s", folder)
        with pytest.raises(TypeError):
            client.submit("s", object())
        with pytest.raises(TypeError, match="msgpack cannot carry this value"):
            client.submit("s", 1 << 70)
        for one in ({"x": 1}, "text", b"bytes"):
            with pytest.raises(TypeError, match="an iterable of payloads, not one of type"):
                client.submit_many("s", one)
        buffer = bytearray(b"\x01")
        handle = client.submit("s", memoryview(buffer))
        buffer[0] = 2
        assert handle.result(60) == 1


class HistoryDouble:
    """Answers HistoryAsk for some jobs, after it has caught up."""

    def __init__(self, folder: Path, known: dict[int, FinishedJob], expired: set[int]) -> None:
        self.asked = 0
        self._known, self._expired = known, expired
        self._stop = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(f"ipc://{folder}/history.sock")
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        options = msgspec.Raw(codec.encode(frames.JobOptions(service="old")))
        while not self._stop.is_set():
            if not self._socket.poll(20):
                continue
            peer, data = self._socket.recv_multipart()
            ask = codec.decode_history_frame(data)
            assert isinstance(ask, frames.HistoryAsk)
            self.asked += 1
            jobs = [self._known[number] for number in ask.ids if number in self._known]
            groups = [FinishedGroup(options, jobs)] if jobs else []
            expired = [number for number in ask.ids if number in self._expired]
            answer = frames.HistoryAnswer(ask.request, self.asked - 1, groups, expired)
            self._socket.send_multipart([peer, codec.encode(answer)])

    def close(self) -> None:
        self._stop.set()
        self._thread.join(60)
        self._socket.close(0)
        self._context.term()


def test_any_job_can_be_looked_up(folder: Path) -> None:
    with serving(folder, ModelBroker(waiting)) as double, Client(double.endpoint) as theirs:
        mine = theirs.submit("s", b"\x01")
        assert mine.accepted(5)
        assert theirs.job(mine.id) is mine
        old, expired, unknown = 7 << 32, 8 << 32, 9 << 32
        history = HistoryDouble(folder, {old: FinishedJob(old, 0, b"\x2a", 1, 2, 1)}, {expired})
        try:
            with Client(double.endpoint) as client:
                handle = client.job(mine.id)
                assert handle.status().state == "waiting"
                with pytest.raises(ResultTimeout):
                    handle.result(0.02)
                assert client.job(old).result(60) == 42
                assert client.job(format_id(old)).status().service == "old"
                with pytest.raises(Refused, match="expired_from_history"):
                    client.job(expired)
                with pytest.raises(Refused, match="history holds no record") as caught:
                    client.job(unknown)
                assert caught.value.failure is FailureClass.NOT_FOUND
                with pytest.raises(ValueError, match="is not a job id"):
                    client.job("u" * 13)
                both = [client.job(mine.number), handle]
                double.finish()
                assert [one.result(60) for one in both] == [1, 1]
        finally:
            history.close()


def test_history_that_does_not_answer_is_named(folder: Path) -> None:
    with pytest.raises(Refused, match=r"history at ipc://.* does not answer"):
        ask_history(f"ipc://{folder}/history.sock", [1], timeout_s=0.05)


def test_history_that_is_replaced_is_asked_again(folder: Path) -> None:
    """The web process that read the question ends with it; its successor answers."""
    number = 7 << 32
    with zmq.Context() as context, ThreadPoolExecutor(1) as pool:
        first = context.socket(zmq.ROUTER)
        first.bind(f"ipc://{folder}/history.sock")
        asking = pool.submit(ask_history, f"ipc://{folder}/history.sock", [number], 30.0)
        first.recv_multipart()
        first.close(0)
        history = HistoryDouble(folder, {number: FinishedJob(number, 0, b"\x2a", 1, 2, 1)}, set())
        try:
            [group] = asking.result(60).groups
            assert [job.id for job in group.jobs] == [number]
        finally:
            history.close()


def test_rows_arrive_and_are_acknowledged(folder: Path) -> None:
    with serving(folder, ModelBroker()) as double, Client(double.endpoint) as client:
        rows = client.subscribe("tool", 1)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(next, rows)
            wait_until(lambda: any(isinstance(frame, frames.Subscribe) for frame in double.model.seen))
            double.say(codec.encode(frames.Rows("tool", [(1, 0, 1, 0, b"a"), (2, 0, 1, 0, b"b")])))
            frame = first.result(60)
            assert isinstance(frame, frames.Rows)
            assert [row[0] for row in frame.rows] == [1, 2]
            second = pool.submit(next, rows)
            wait_until(lambda: frames.CursorAck("tool", 2) in double.model.seen)
            double.say(codec.encode(frames.Reset("tool", 9)))
            assert second.result(60) == frames.Reset("tool", 9)
        rows.close()  # type: ignore[attr-defined]


def test_the_caretaker_sleeps_while_nothing_is_open(folder: Path) -> None:
    with serving(folder, ModelBroker(waiting)) as double, Client(double.endpoint) as client:
        for _ in range(2):
            handle = client.submit("s", b"\x01")
            assert client._pump._busy.is_set()
            assert handle.accepted(5)
            double.finish()
            assert handle.result(60) == 1
            wait_until(lambda: not client._pump._busy.is_set())
