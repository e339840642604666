"""Children for the supervisor's tests, and a daemon that runs them.

    python supervisor_children.py CONFIG.json

A child does what `behaviour.json` in the test's directory says of its name (`serve` when it says nothing), reports
what happens to it as lines in `events.jsonl`, and sends the control record that it finds in `command-NAME.json`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path

from empd.lifecycle import Child, ChildKind, Control, Notice, receive, send
from empd.mapping import Mapping
from empd.memory.board import Activity, ActivityWriter, Board
from empd.settings import Settings
from empd.supervisor import devices, kinds, process

POLL_MS = 20


class Played:
    """One child that plays its part."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.folder = Path(child.settings.state_dir).parent
        behaviour = json.loads((self.folder / "behaviour.json").read_text())
        self.part = behaviour.get(child.name, "serve")
        self.writer: ActivityWriter = Board.attach(child.board_fd).writer(child.slot, Activity)
        self.may_leave = self.part not in ("deaf", "never_drains")
        self.working = self.part == "works_silently"

    def say(self, what: str, **more: object) -> None:
        line = {"what": what, "name": self.child.name, "pid": os.getpid(), "generation": self.child.generation}
        line |= {"at_ns": time.monotonic_ns(), "cuda": os.environ.get("CUDA_VISIBLE_DEVICES"), **more}
        with (self.folder / "events.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def beat(self) -> None:
        if self.part not in ("silent", "works_silently"):
            self.writer.beat(time.monotonic_ns())

    def command(self) -> None:
        path = self.folder / f"command-{self.child.name}.json"
        if path.exists():
            record = Control(**json.loads(path.read_text()))
            path.unlink()
            send(self.child.control, record._replace(notice=Notice(record.notice), kind=ChildKind(record.kind)))
            if record.notice == Notice.RECYCLE:
                sys.exit(0)

    def hear(self) -> bool:
        """False when told to leave."""
        for record in receive(self.child.control) or ():
            self.say(
                record.notice.name, kind=record.kind, slot=record.slot, of=record.generation, cause=record.cause,
                status=record.status, of_pid=record.pid, value=record.value,
            )  # fmt: skip
            if record.notice in (Notice.DRAIN, Notice.STOP):
                return not (self.may_leave or (record.notice is Notice.STOP and self.part == "never_drains"))
        return True


def fork_sleeper(own_session: bool = False) -> int:
    """A grandchild that ignores polite signals."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if own_session:
            os.setsid()
        while True:
            signal.pause()
    return pid


def fork_orphan() -> int:
    """A grandchild whose parent is gone."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write_fd, str(fork_sleeper()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return int(os.read(read_fd, 20))


def main(child: Child) -> int:
    played = Played(child)
    played.say(
        "entered",
        settings_drain_s=child.settings.drain_s,
        environment=sorted(os.environ),
        device=child.device is not None,
    )
    if played.part == "crashes":
        return 3
    if played.part == "raises":
        raise RuntimeError("this is what went wrong")
    if played.part == "never_ready":
        signal.pause()
    if played.part == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if played.part == "talks":
        print("last words", file=sys.stderr)
    if played.part == "leaves_an_orphan":
        played.say("grandchild", grandchild=fork_orphan())
    if played.part == "has_grandchild":
        played.say("grandchild", grandchild=fork_sleeper())
    if played.working:
        played.writer.write(Activity(time.monotonic_ns(), job_id=77, epoch=1, jobs_running=1))
    played.beat()
    before_ns = time.monotonic_ns()
    send(child.control, Control(Notice.READY))
    played.say("ready", at_ns=before_ns)
    poll = select.poll()
    poll.register(child.control, select.POLLIN)
    while True:
        played.beat()
        played.command()
        if poll.poll(POLL_MS) and not played.hear():
            played.say("leaves")
            return 0


def load(config: Path) -> tuple[Settings, Mapping]:
    """What the test wrote last."""
    raw = json.loads(config.read_text())
    settings = Settings(
        state_dir=config.parent / "state",
        runtime_dir=config.parent / "run",
        gpus=raw.get("gpus", "none"),
        drain_s=raw.get("drain_s", 5.0),
        term_grace_s=raw.get("term_grace_s", 0.3),
        preload=tuple(raw.get("preload", ["msgspec"])),
    )
    return settings, Mapping.from_dict(raw["mapping"], {})


def table_from(raw: dict[str, dict[str, object]]):
    """The real table with the test's entries and limits."""

    def table(settings: Settings) -> dict[ChildKind, kinds.Kind]:
        rows = {}
        for kind, row in kinds.kinds(settings).items():
            change = dict(raw.get(kind.name.lower(), {}))
            heartbeat_s = change.pop("heartbeat_s", row.heartbeat_s)
            policy = row.policy._replace(**{"dump_gap_s": 0.1, "term_grace_s": 0.2, "stop_s": 1.0, **change})
            rows[kind] = row._replace(entry="supervisor_children:main", policy=policy, heartbeat_s=heartbeat_s)
        return rows

    return table


def run_daemon(config: Path) -> int:
    raw = json.loads(config.read_text())
    settings, mapping = load(config)

    def find_devices(gpus: str | tuple[str, ...]) -> devices.Found:
        for number in raw.get("signals_at_start", ()):  # somebody is quick
            os.kill(os.getpid(), number)
        return devices.find(gpus)

    table = table_from(raw.get("table", {}))
    return process.run(settings, mapping, lambda: load(config), table=table, find_devices=find_devices)


if __name__ == "__main__":
    sys.exit(run_daemon(Path(sys.argv[1])))
