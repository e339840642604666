"""`empd demo`: the story, and the table at its end."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import click

from empd.cli import options, output
from empd.cli.codes import ExitCode
from empd.cli.demo import png
from empd.cli.demo.daemon import Daemon
from empd.cli.demo.recorder import Recorder
from empd.client import Client, JobHandle
from empd.errors import EmpdError

SHIPPED_PICTURES = Path(__file__).parent / "pictures"
WIDTHS = (240, 120, 60)
BLOB_BYTES = 64 << 20
TIMEOUT_S = 55.0
POLL_S = 0.02


class Kill(NamedTuple):
    """One SIGKILL: whom, when (Unix nanoseconds), and what tells its successor apart."""

    name: str
    at_ns: int
    generation: int
    boot: int


class Demo:
    """One run of the demo against its own daemon."""

    def __init__(self, daemon: Daemon, client: Client, recorder: Recorder, say: Any) -> None:
        self._daemon = daemon
        self._client = client
        self._recorder = recorder
        self._say = say
        self.handles: list[JobHandle] = []
        self.problems: list[str] = []
        self.kills: list[Kill] = []
        self._pause = threading.Event()

    def run(self, pictures: list[Path], count: int, thumbnails: Path) -> float:
        """All of it; the seconds from the first submit to the last result."""
        started = time.monotonic()
        small = self._send_pictures(pictures)
        blob, digest = self._send_blob()
        jobs = list(self._client.submit_many("simulation", ({"n": n} for n in range(count))))
        self.handles += jobs
        self._client.flush(TIMEOUT_S)
        self._follow(jobs, started)
        self._check_pictures(small, thumbnails)
        self._check_blob(blob, digest)
        took_s = time.monotonic() - started
        self._wait_for_the_rest(started)
        return took_s

    def _send_pictures(self, pictures: list[Path]) -> list[tuple[Path, int, JobHandle]]:
        sent = []
        for path in pictures:
            data = path.read_bytes()
            for width in WIDTHS:
                handle = self._client.submit("thumbnail", {"png": data, "width": width})
                sent.append((path, width, handle))
        self.handles += [handle for _, _, handle in sent]
        self._say(f"{len(pictures)} pictures in {len(WIDTHS)} sizes sent to the python service")
        return sent

    def _send_blob(self) -> tuple[JobHandle, str]:
        block = hashlib.sha256(b"empd").digest() * (1 << 15)
        data = block * (BLOB_BYTES // len(block))
        handle = self._client.submit("checksum", data)
        self.handles.append(handle)
        self._say(f"one payload of {output.size(len(data))} sent through the arena")
        return handle, hashlib.sha256(data).hexdigest()

    def _follow(self, jobs: list[JobHandle], started: float) -> None:
        """The simulation jobs, with a bar; a worker is killed at a third of them, the broker at two thirds."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("simulation"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=output.console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task("jobs", total=len(jobs))
            while time.monotonic() - started < TIMEOUT_S:
                ended = sum(handle.ended for handle in jobs)
                progress.update(task, completed=ended)
                if ended == len(jobs):
                    return
                if len(self.kills) < 2 and ended >= len(jobs) * (len(self.kills) + 1) / 3:
                    self._kill_broker() if self.kills else self._kill_worker()
                self._client.poll()
                self._pause.wait(POLL_S)

    def _kill_worker(self) -> None:
        status = self._client.status()
        busy = [worker for worker in status["workers"] if worker["type"] == "gpu" and worker["held"]]
        if not busy:
            return  # between two jobs: the next look finds one
        victim = busy[0]
        at_ns = self._daemon.kill(victim["pid"])
        self.kills.append(Kill(victim["name"], at_ns, victim["generation"], status["boot"]))
        self._say(f"SIGKILL to worker {victim['name']} (pid {victim['pid']}), which was running a job")

    def _kill_broker(self) -> None:
        status = self._client.status()
        at_ns = self._daemon.kill(status["pid"])
        self.kills.append(Kill("broker", at_ns, 0, status["boot"]))
        self._say(f"SIGKILL to the broker (pid {status['pid']}) with {status['jobs']['unfinished']} jobs unfinished")

    def _check_pictures(self, sent: list[tuple[Path, int, JobHandle]], thumbnails: Path) -> None:
        thumbnails.mkdir(parents=True, exist_ok=True)
        for path, width, handle in sent:
            try:
                data = handle.result(TIMEOUT_S)
                made = png.decode(data)
            except (EmpdError, ValueError) as error:
                self.problems.append(f"{path.name} at {width}: {error}")
                continue
            if made.width > width:
                self.problems.append(f"{path.name} at {width}: came back {made.width} pixels wide")
            (thumbnails / f"{path.stem}-{width}.png").write_bytes(data)

    def _check_blob(self, handle: JobHandle, digest: str) -> None:
        try:
            found = handle.result(TIMEOUT_S)
        except EmpdError as error:
            self.problems.append(f"the {output.size(BLOB_BYTES)} payload: {error}")
            return
        if found != {"bytes": BLOB_BYTES, "sha256": digest}:
            self.problems.append(f"the {output.size(BLOB_BYTES)} payload arrived changed: {found}")

    def _wait_for_the_rest(self, started: float) -> None:
        left_s = max(TIMEOUT_S - (time.monotonic() - started), 1.0)
        self._recorder.wait_for_ends(len(self.accepted), left_s)
        if len(self.kills) < 2:
            self.problems.append("the jobs ended before both kills; try more of them with --jobs")

    @property
    def accepted(self) -> list[JobHandle]:
        """The jobs that the daemon acknowledged."""
        return [handle for handle in self.handles if handle.batch is None and handle.state != "refused"]


@click.command()
@click.option(
    "--pictures",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=SHIPPED_PICTURES,
    help="A folder of PNG files.  [default: the ones shipped]",
)
@click.option("--jobs", "count", type=click.IntRange(100, 100_000), default=2_000, show_default=True)
@click.option("--keep", is_flag=True, help="Leave the daemon and its page running.")
@options.as_json
def demo(pictures: Path, count: int, keep: bool, json_output: bool) -> int:
    """Start a daemon of its own with two virtual GPUs, give it work, kill a worker and the broker, count what is lost.

    Touches no other daemon. Exit code 0 only if nothing was lost and nothing was done twice.
    """
    files = sorted(path for path in pictures.iterdir() if path.suffix.lower() == ".png")
    if not files:
        raise click.UsageError(f"{pictures} holds no .png files")
    daemon = Daemon()
    try:
        report = _run(daemon, files, count)
        if keep:
            daemon.keep()
    finally:
        daemon.close()
    report |= {"kept": str(daemon.directory) if keep else None}
    if json_output:
        output.print_json(report)
    else:
        _show(report, daemon)
    return ExitCode.OK if report["ok"] else ExitCode.FAILED


def _run(daemon: Daemon, files: list[Path], count: int) -> dict[str, Any]:
    def say(text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)

    began = time.monotonic()
    with daemon.connect() as client:
        say(f"daemon up in {time.monotonic() - began:.1f} s: two virtual GPUs, page at {daemon.page}")
        recorder = Recorder(daemon.endpoint)
        try:
            story = Demo(daemon, client, recorder, say)
            took_s = story.run(files, count, daemon.directory / "thumbnails")
            return _report(story, recorder, took_s) | {"page": daemon.page}
        finally:
            recorder.close()


def _report(story: Demo, recorder: Recorder, took_s: float) -> dict[str, Any]:
    accepted = [handle.number for handle in story.accepted]
    lost = [number for number in accepted if number not in recorder.ends]
    undelivered = [handle for handle in story.accepted if not handle.ended]
    completed = sum(1 for number in accepted if recorder.completions[number])
    times: dict[str, float | None] = {}
    for kill in story.kills:
        if kill.name == "broker":
            times["broker"] = recorder.broker_claim_ms(kill.at_ns, kill.boot)
        else:
            times["worker"] = recorder.worker_claim_ms(kill.at_ns, kill.name, kill.generation)
    problems = [*story.problems]
    problems += [f"{len(undelivered)} results did not reach their handles"] if undelivered else []
    problems += [f"{len(accepted) - completed} jobs did not complete"] if completed != len(accepted) else []
    return {
        "ok": not lost and not recorder.doubled and not problems,
        "accepted": len(accepted),
        "completed": completed,
        "lost": len(lost),
        "completed_twice": recorder.doubled,
        "executions": recorder.executions,
        "worker_kill_to_claim_ms": times.get("worker"),
        "broker_kill_to_claim_ms": times.get("broker"),
        "seconds": round(took_s, 2),
        "jobs_per_s": round(completed / took_s, 1),
        "problems": problems,
    }


def _show(report: dict[str, Any], daemon: Daemon) -> None:
    def claim(name: str) -> str:
        value = report[f"{name}_kill_to_claim_ms"]
        return "none was seen" if value is None else f"{value:,.0f} ms"

    rows: Iterable[tuple[str, str]] = (
        ("jobs accepted", f"{report['accepted']:,}"),
        ("completed", f"{report['completed']:,}"),
        ("lost", str(report["lost"])),
        ("completed twice", str(report["completed_twice"])),
        ("executions begun", f"{report['executions']:,}"),
        ("worker killed, to its replacement's first claim", claim("worker")),
        ("broker killed, to the next claim", claim("broker")),
        ("jobs/s", f"{report['jobs_per_s']:,.0f}"),
        ("page", report["page"] + ("" if report["kept"] else " (stopped; --keep leaves it running)")),
    )
    output.print_table(("demo", ">result"), rows)
    for problem in report["problems"]:
        print(f"problem: {problem}")
    if report["kept"]:
        print(f"still running: pid {daemon.pid}, EMPD_ENDPOINT={daemon.endpoint}, stop it with `kill {daemon.pid}`")
