"""The whole supervisor with real processes and real signals: restarts, ladder, neighbours, stop, reload."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from supervisor_daemon import Daemon, mapping_of

from empd.lifecycle import ChildKind, Exit, Notice
from tests.box import is_alive, wait_until


def records(daemon: Daemon, what: str, name: str, **fields: object) -> list[dict]:
    """Control records that a child got, filtered by their fields."""
    found = daemon.events(what, name)
    return [each for each in found if all(each[key] == value for key, value in fields.items())]


def test_a_killed_child_is_replaced_at_once_in_the_same_slot(daemon: Daemon):
    daemon.start()
    before = daemon.child("w-0")
    os.kill(before["pid"], signal.SIGKILL)
    daemon.wait_events(2, "ready", "w-0")
    wait_until(lambda: daemon.child("w-0")["restarts"], "the status to say so")
    after = daemon.wait_state("w-0", "ready")
    assert after["slot"] == before["slot"]
    newest = max(each["generation"] for each in daemon.status()["children"])
    assert before["generation"] < after["generation"] == newest
    assert (after["restarts"], after["last_exit"], after["last_status"]) == (1, "crashed", signal.SIGKILL)
    assert daemon.child("w-1")["restarts"] == 0


_WAITS_FOR_THE_BROKER = """
import pathlib, time
events, until_s = pathlib.Path(__file__).with_name("events.jsonl"), time.monotonic() + 30
while not events.exists() or '"ready"' not in events.read_text():
    if time.monotonic() > until_s:
        raise RuntimeError("nobody became ready")
    time.sleep(0.01)
"""


def test_the_broker_begins_while_what_the_others_need_is_loaded(daemon: Daemon):
    (daemon.folder / "waits_for_the_broker.py").write_text(_WAITS_FOR_THE_BROKER)
    daemon.environment["PYTHONPATH"] += f":{daemon.folder}"
    daemon.start(preload=["waits_for_the_broker"])
    assert "not preloaded" not in daemon.stderr
    assert [(each["what"], each["name"]) for each in daemon.events()][:2] == [
        ("entered", "broker"),
        ("ready", "broker"),
    ]


def test_the_broker_gets_the_picture_first_and_then_hears_of_every_death_and_start(daemon: Daemon):
    daemon.start()
    names = {each["slot"]: each["name"] for each in daemon.status()["children"]}
    os.kill(daemon.child("broker")["pid"], signal.SIGKILL)
    broker = daemon.wait_events(2, "ready", "broker")[1]["generation"]
    told = wait_until(
        lambda: (
            found
            if (found := [each for each in daemon.events(name="broker") if each["generation"] == broker])
            and found[-1]["what"] == "PICTURE_END"
            else None
        ),
        "the picture",
    )
    picture = [each for each in told if each["what"] == "UP"]
    assert sorted(names[each["slot"]] for each in picture) == ["w-0", "w-1", "web"]
    assert {each["of_pid"] for each in picture} <= set(daemon.pids())

    victim = daemon.child("w-0")
    os.kill(victim["pid"], signal.SIGKILL)
    gone = wait_until(lambda: records(daemon, "GONE", "broker", of=victim["generation"]), "GONE")[0]
    assert (gone["cause"], gone["status"], gone["of_pid"]) == (Exit.CRASHED, signal.SIGKILL, victim["pid"])
    assert gone["kind"] == ChildKind.WORKER
    successor = daemon.wait_events(2, "entered", "w-0")[1]
    up = wait_until(lambda: records(daemon, "UP", "broker", of=successor["generation"]), "UP")[0]
    assert up["at_ns"] >= gone["at_ns"]
    assert not records(daemon, "GONE", "w-1")


def test_a_new_broker_is_told_what_its_predecessor_did_not_live_to_hear(daemon: Daemon):
    daemon.behave(broker="crashes")
    daemon.start(table={"broker": {"budget": 0, "open_s": 1.0}}, ready=False)
    wait_until((daemon.folder / "run" / "supervisor.json").exists, "the status file")
    victim = daemon.wait_state("w-0", "ready")
    daemon.wait_state("broker", "open")
    daemon.behave()
    os.kill(victim["pid"], signal.SIGKILL)
    daemon.wait_events(1, "PICTURE_END", "broker")
    told = [(each["what"], each["of"]) for each in daemon.events(name="broker") if each["what"] in ("GONE", "UP")]
    assert told[0] == ("GONE", victim["generation"])
    assert {what for what, _ in told[1:]} == {"UP"}


def test_gone_is_told_only_when_the_whole_tree_is_dead(daemon: Daemon):
    daemon.behave(w_0="has_grandchild")
    daemon.start()
    grandchild = daemon.wait_events(1, "grandchild", "w-0")[0]["grandchild"]
    victim = daemon.child("w-0")
    assert is_alive(grandchild)
    os.kill(victim["pid"], signal.SIGKILL)
    wait_until(lambda: records(daemon, "GONE", "broker", of=victim["generation"]), "GONE")
    assert not is_alive(grandchild)


def test_an_orphan_is_adopted_and_goes_with_the_session_it_came_from(daemon: Daemon):
    daemon.behave(w_0="leaves_an_orphan")
    daemon.start()
    orphan = daemon.wait_events(1, "grandchild", "w-0")[0]["grandchild"]
    assert f"PPid:\t{daemon.pid}\n" in Path(f"/proc/{orphan}/status").read_text()
    victim = daemon.child("w-0")
    os.kill(victim["pid"], signal.SIGKILL)
    wait_until(lambda: records(daemon, "GONE", "broker", of=victim["generation"]), "GONE")
    assert not is_alive(orphan)
    wait_until(lambda: not Path(f"/proc/{orphan}").exists(), "the orphan to be reaped")


def test_a_child_has_shed_the_supervisors_signal_handlers_and_its_last_words_are_kept(daemon: Daemon):
    daemon.behave(w_0="talks")
    daemon.start()
    victim = daemon.child("w-0")
    os.kill(victim["pid"], signal.SIGTERM)
    gone = wait_until(lambda: records(daemon, "GONE", "broker", of=victim["generation"]), "GONE")[0]
    assert (gone["cause"], gone["status"]) == (Exit.CRASHED, signal.SIGTERM)
    evidence = (daemon.folder / "run" / "evidence" / f"{victim['generation']:016x}.log").read_text()
    assert evidence == "last words\n"
    assert "last words\n" in daemon.stderr


def test_a_failing_child_backs_off_opens_the_circuit_and_is_cured_by_a_probe(daemon: Daemon):
    daemon.behave(w_0="crashes")
    limits = {"budget": 3, "backoff_first_s": 0.05, "backoff_max_s": 0.1, "open_s": 0.4, "healthy_s": 0.2}
    daemon.start(table={"worker": limits})
    found = daemon.wait_state("w-0", "open")
    assert found["last_exit"] == "crashed"
    assert os.waitstatus_to_exitcode(found["last_status"]) == 3
    assert len(daemon.events("entered", "w-0")) == limits["budget"] + 1
    # A probe that fails opens it again, and nobody else is disturbed.
    daemon.wait_events(limits["budget"] + 2, "entered", "w-0")
    daemon.wait_state("w-0", "open")
    assert daemon.child("w-1")["restarts"] == 0
    daemon.behave()
    daemon.wait_state("w-0", "ready")
    daemon.send(signal.SIGTERM)
    assert daemon.wait_exit() == 0


def test_an_exception_in_the_entry_is_said_and_kept_as_evidence(daemon: Daemon):
    daemon.behave(w_0="raises")
    daemon.start(table={"worker": {"budget": 1, "open_s": 60.0}})
    daemon.wait_state("w-0", "open")
    assert "RuntimeError: this is what went wrong" in daemon.stderr
    first = daemon.events("entered", "w-0")[0]["generation"]
    evidence = (daemon.folder / "run" / "evidence" / f"{first:016x}.log").read_text()
    assert "RuntimeError: this is what went wrong" in evidence
    assert os.waitstatus_to_exitcode(daemon.child("w-0")["last_status"]) == 70


def test_the_broker_has_a_stopped_worker_killed_with_evidence(daemon: Daemon):
    daemon.start()
    victim = daemon.child("w-0")
    os.kill(victim["pid"], signal.SIGSTOP)
    daemon.command("broker", notice=Notice.KILL, slot=victim["slot"], generation=victim["generation"], cause=Exit.HUNG)
    gone = wait_until(lambda: records(daemon, "GONE", "broker", of=victim["generation"]), "GONE")[0]
    assert (gone["cause"], gone["status"]) == (Exit.HUNG, signal.SIGKILL)
    wait_until(lambda: daemon.child("w-0")["last_exit"] == "hung", "the status to say so")
    daemon.wait_state("w-0", "ready")


def test_a_hung_child_leaves_its_stacks(daemon: Daemon):
    daemon.behave(w_0="deaf")
    daemon.start(table={"worker": {"dump_gap_s": 1.5}})
    victim = daemon.child("w-0")
    daemon.command(
        "broker", notice=Notice.KILL, slot=victim["slot"], generation=victim["generation"], cause=Exit.GPU_LOST
    )
    gone = wait_until(lambda: records(daemon, "GONE", "broker", of=victim["generation"]), "GONE")[0]
    assert gone["cause"] == Exit.GPU_LOST
    evidence = (daemon.folder / "run" / "evidence" / f"{victim['generation']:016x}.log").read_text()
    assert "supervisor_children.py" in evidence
    assert "thread 0x" in evidence  # the fault handler's own
    assert "Python v3" in evidence  # py-spy's


def test_a_stale_or_senseless_kill_hits_nobody(daemon: Daemon):
    """A kill that hits after all shows as a GPU_LOST (4), the one that counts as HUNG."""
    daemon.start()
    worker, broker = daemon.child("w-0"), daemon.child("broker")
    daemon.command("broker", notice=Notice.KILL, slot=worker["slot"], generation=worker["generation"] + 99, cause=4)
    wait_until(lambda: not (daemon.folder / "command-broker.json").exists(), "the command to be sent")
    daemon.command("broker", notice=Notice.KILL, slot=broker["slot"], generation=broker["generation"], cause=4)
    wait_until(lambda: not (daemon.folder / "command-broker.json").exists(), "the command to be sent")
    # A worker has no say over others.
    daemon.command("w-1", notice=Notice.KILL, slot=worker["slot"], generation=worker["generation"], cause=4)
    wait_until(lambda: not (daemon.folder / "command-w-1.json").exists(), "the command to be sent")
    daemon.command("broker", notice=Notice.KILL, slot=worker["slot"], generation=worker["generation"], cause=250)
    wait_until(lambda: records(daemon, "GONE", "broker", of=worker["generation"], cause=Exit.HUNG), "GONE")
    daemon.wait_events(2, "ready", "w-0")
    wait_until(lambda: daemon.child("w-0")["restarts"], "the status to say so")
    assert [each["restarts"] for each in daemon.status()["children"]] == [0, 0, 1, 0]


def test_silence_is_a_hang_but_not_while_a_job_runs(daemon: Daemon):
    daemon.behave(web="silent", w_0="silent", w_1="works_silently")
    daemon.start(table={"web": {"heartbeat_s": 1.0}, "worker": {"heartbeat_s": 1.0}, "broker": {"heartbeat_s": 1.0}})
    for name in ("web", "w-0"):
        wait_until(lambda name=name: daemon.child(name)["last_exit"] == "hung", f"{name} to be found hung")
    assert daemon.child("w-1")["restarts"] == 0
    assert daemon.child("broker")["restarts"] == 0


def test_a_child_that_is_stopped_while_it_starts_is_replaced(daemon: Daemon):
    daemon.behave(w_0="never_ready")
    daemon.start(ready=False, table={"worker": {"heartbeat_s": 0.5}})
    first = daemon.wait_events(1, "entered", "w-0")[0]["pid"]
    daemon.behave()
    os.kill(first, signal.SIGSTOP)
    daemon.wait_events(1, "ready", "w-0")
    assert daemon.wait_state("w-0", "ready")["last_exit"] == "hung"
    assert not is_alive(first)


def test_a_child_that_is_slow_to_start_is_waited_for(daemon: Daemon):
    daemon.behave(w_0="never_ready")
    daemon.start(ready=False, table={"worker": {"heartbeat_s": 0.2}})
    first = daemon.wait_events(1, "entered", "w-0")[0]["pid"]
    os.kill(first, signal.SIGSTOP)  # for a moment
    os.kill(first, signal.SIGCONT)
    wait_until((daemon.folder / "run" / "supervisor.json").exists, "the status file")
    wait_until(lambda: time.time() - daemon.child("w-0")["since_unix_s"] > 2.5, "several looks at it")
    assert daemon.child("w-0")["state"] == "starting"
    assert is_alive(first)


def test_gone_names_the_job_that_was_on_the_board(daemon: Daemon):
    daemon.behave(w_0="works_silently")
    daemon.start()
    victim = daemon.wait_state("w-0", "ready")
    os.kill(victim["pid"], signal.SIGSEGV)
    gone = wait_until(lambda: records(daemon, "GONE", "broker", of=victim["generation"]), "GONE")[0]
    assert gone["value"] == 77
    evidence = (daemon.folder / "run" / "evidence" / f"{victim['generation']:016x}.log").read_text()
    assert "Segmentation fault" in evidence


def test_a_recycled_worker_is_replaced_uncharged(daemon: Daemon):
    daemon.start(table={"worker": {"budget": 1, "open_s": 60.0}})
    for round_number in range(1, 5):
        daemon.wait_events(round_number, "ready", "w-0")
        daemon.command("w-0", notice=Notice.RECYCLE)
    daemon.wait_events(5, "ready", "w-0")
    assert daemon.wait_state("w-0", "ready")["last_exit"] == "drained"


def test_sigterm_drains_in_order_and_exits_zero(daemon: Daemon):
    daemon.start()
    daemon.send(signal.SIGTERM)
    assert daemon.wait_exit() == 0
    left = [each["name"] for each in daemon.events("leaves")]
    assert sorted(left[:2]) == ["w-0", "w-1"]
    assert left[2:] == ["web", "broker"]
    assert not any(is_alive(pid) for pid in daemon.pids())
    assert len(records(daemon, "GONE", "broker")) == 3
    assert sorted(each.name for each in (daemon.folder / "run").iterdir()) == ["evidence", "lock"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_that_is_asked_for_before_anything_has_started_is_a_stop(daemon: Daemon, number: signal.Signals):
    daemon.start(ready=False, signals_at_start=[number])
    assert daemon.wait_exit() == 0
    assert "ready: " not in daemon.stderr
    assert not any(is_alive(pid) for pid in daemon.pids())
    assert "Traceback" not in daemon.stderr


def test_a_reload_that_is_asked_for_before_anything_has_started_ends_nothing(daemon: Daemon):
    daemon.start(signals_at_start=[signal.SIGHUP])
    daemon.send(signal.SIGTERM)
    assert daemon.wait_exit() == 0


def test_a_stop_ends_children_that_are_still_starting(daemon: Daemon):
    daemon.behave(w_0="never_ready", broker="never_ready")
    daemon.start(ready=False)
    daemon.wait_events(1, "entered", "w-0")
    daemon.send(signal.SIGTERM)
    assert daemon.wait_exit() == 0
    assert not any(is_alive(pid) for pid in daemon.pids())


def test_a_worker_that_does_not_drain_is_told_to_stop_at_the_limit(daemon: Daemon):
    daemon.behave(w_0="never_drains")
    daemon.start(drain_s=0.3)
    daemon.send(signal.SIGINT)
    assert daemon.wait_exit() == 0
    assert len(daemon.events("STOP", "w-0")) == 1
    assert daemon.events("leaves")[-1]["name"] == "broker"


def test_a_second_sigterm_ends_it_now(daemon: Daemon):
    daemon.behave(w_0="deaf", w_1="deaf", broker="deaf", web="deaf")
    daemon.start(drain_s=600.0)
    daemon.send(signal.SIGTERM)
    daemon.wait_events(1, "DRAIN", "w-0")
    assert is_alive(daemon.pid)
    daemon.send(signal.SIGTERM)
    assert daemon.wait_exit() == 0
    assert not any(is_alive(pid) for pid in daemon.pids())


def test_a_stop_asked_for_by_the_broker_is_a_drain_too(daemon: Daemon):
    daemon.start()
    daemon.command("broker", notice=Notice.STOP_REQUEST)
    assert daemon.wait_exit() == 0
    assert {each["name"] for each in daemon.events("DRAIN")} == {"w-0", "w-1"}


def test_the_death_of_the_supervisor_ends_everything(daemon: Daemon):
    daemon.behave(w_0="deaf", w_1="has_grandchild")
    daemon.start()
    assert is_alive(daemon.wait_events(1, "grandchild")[0]["grandchild"])
    daemon.send(signal.SIGKILL)
    daemon.wait_exit()
    wait_until(lambda: not any(is_alive(pid) for pid in daemon.pids()), "all children and grandchildren to be gone")


def test_a_restarted_supervisor_takes_over_the_directories_of_a_killed_one(daemon: Daemon):
    daemon.start()
    first = daemon.events("entered")[0]["generation"]
    daemon.send(signal.SIGKILL)
    daemon.wait_exit()
    daemon.start()
    assert first >> 32 != daemon.events("entered")[-1]["generation"] >> 32
    assert daemon.status()["pid"] == daemon.pid


def test_a_second_daemon_is_told_who_holds_the_state(daemon: Daemon, folder):
    daemon.start()
    second = Daemon(folder)
    second.start(ready=False)
    try:
        assert second.wait_exit() != 0
        assert f"state_dir {folder / 'state'} belongs to a running empd (pid {daemon.pid})" in second.stderr
    finally:
        second.close()
    assert (folder / "run" / "pid").read_text() == f"{daemon.pid}\n"


def test_reload_rolls_the_children_one_by_one_onto_the_new_configuration(daemon: Daemon):
    daemon.start()
    daemon.configure(drain_s=7.0, mapping=mapping_of(3))
    daemon.send(signal.SIGHUP)
    daemon.wait_events(2, "ready", "web")
    entered = daemon.events("entered")[4:]
    assert [each["name"] for each in entered] == ["broker", "w-0", "w-1", "w-2", "web"]
    assert {each["settings_drain_s"] for each in entered} == {7.0}
    # One at a time: each was ready before the next one was told to go.
    times = [(each["at_ns"], each["what"], each["name"]) for each in daemon.events()]
    for earlier, later in (("broker", "w-0"), ("w-0", "w-1"), ("w-1", "web")):
        ready_ns = [at for at, what, name in times if (what, name) == ("ready", earlier)][1]
        leaves_ns = next(at for at, what, name in times if (what, name) == ("leaves", later))
        assert ready_ns < leaves_ns
    wait_until(lambda: daemon.status()["status"] == "3 of 3 workers ready", "the reload to be over")
    assert {each["last_exit"] for each in daemon.status()["children"]} == {"drained", "clean", None}


def test_reload_removes_workers_that_are_no_longer_wanted(daemon: Daemon):
    daemon.start(mapping=mapping_of(3))
    daemon.configure(mapping=mapping_of(1))
    daemon.command("broker", notice=Notice.RELOAD_REQUEST)
    wait_until(lambda: daemon.status()["status"] == "1 of 1 workers ready", "the reload to be over")
    assert {each["name"] for each in daemon.status()["children"]} == {"broker", "web", "w-0"}
    slots = {each["slot"] for each in daemon.status()["children"]}
    daemon.configure(mapping=mapping_of(2))
    daemon.send(signal.SIGHUP)
    wait_until(lambda: daemon.status()["status"] == "2 of 2 workers ready", "the second reload to be over")
    assert daemon.child("w-1")["slot"] not in slots


def test_a_wrong_configuration_is_refused_and_the_old_one_stays(daemon: Daemon):
    daemon.start()
    broken = mapping_of()
    broken["workers"]["w"]["services"] = ["no-such-service"]
    daemon.configure(mapping=broken)
    daemon.send(signal.SIGHUP)
    wait_until(lambda: "reload: " in daemon.stderr and "no-such-service" in daemon.stderr, "the refusal")
    assert len(daemon.events("entered")) == 4
    os.kill(daemon.child("w-0")["pid"], signal.SIGKILL)
    daemon.wait_events(2, "ready", "w-0")


def test_a_configuration_that_cannot_even_be_read_is_refused(daemon: Daemon):
    daemon.start()
    (daemon.folder / "config.json").write_text("{")
    daemon.send(signal.SIGHUP)
    wait_until(lambda: "reload: JSONDecodeError" in daemon.stderr, "the refusal")
    daemon.configure(mapping=mapping_of(128))
    daemon.send(signal.SIGHUP)
    wait_until(lambda: "at most 128" in daemon.stderr, "the refusal")
    assert len(daemon.events("entered")) == 4
    assert daemon.status()["status"] == "2 of 2 workers ready"


def test_a_stop_during_a_reload_wins(daemon: Daemon):
    daemon.behave(w_0="never_drains")
    daemon.start(drain_s=1.0)
    daemon.send(signal.SIGHUP)
    daemon.wait_events(1, "DRAIN", "w-0")
    daemon.send(signal.SIGTERM)
    assert daemon.wait_exit() == 0
    assert len(daemon.events("entered", "w-1")) == 1


def test_devices_pin_their_workers_and_cpu_workers_see_none(daemon: Daemon):
    daemon.environment["NOTIFY_SOCKET"] = str(daemon.folder / "nobody.sock")
    daemon.environment["WATCHDOG_USEC"] = "30000000"
    daemon.start(gpus="virtual:2", mapping=mapping_of(gpu=True))
    entered = daemon.wait_events(4, "entered")
    assert {each["name"] for each in entered if each["device"]} == {"w-gpu0", "w-gpu1"}
    assert {each["cuda"] for each in entered} == {""}
    for each in entered:
        assert "NOTIFY_SOCKET" not in each["environment"]
        assert "WATCHDOG_USEC" not in each["environment"]
    assert [each["virtual"] for each in daemon.status()["devices"]] == [True, True]
    assert daemon.status()["mode"] in ("process_group", "cgroup")
