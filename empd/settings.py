"""The settings: one table. Its rows are the fields of `Settings`; files, environment, flags, samples, schema and
documentation all derive from them. `loading.py` reads them.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from empd.checking import accepted, format_size, is_size, meta_of

CONFIG_FILE = Path("/etc/empd/empd.toml")
MAPPING_FILE = Path("/etc/empd/service-mapping.json")
NEVER_PRELOADED = ("torch", "numpy", "grpc")
ENVIRONMENT_PREFIX = "EMPD_"
SOCKET_NAME_LONGEST = "telemetry.sock"
_DAY_S = 86400.0


def _row(text: str, **constraints: Any) -> msgspec.Meta:
    """A row of the table: what the setting means, and what it takes."""
    extra: dict[str, Any] = {
        name: constraints.pop(name) for name in ("accepted", "default", "example", "unit") if name in constraints
    }
    return msgspec.Meta(description=text, extra=extra, **constraints)


def _size(text: str) -> msgspec.Meta:
    return _row(text, ge=0, unit="bytes")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting of the daemon, checked. Made by `loading`; tests may construct one directly."""

    config: Annotated[Path | None, _row("The file with these settings.", default=f"{CONFIG_FILE}, where it exists")] = (
        None
    )
    mapping: Annotated[
        Path | None,
        _row(
            "The service mapping.",
            default=f"{MAPPING_FILE}, where it exists, else the embedded one",
            example=str(MAPPING_FILE),
        ),
    ] = None
    state_dir: Annotated[
        Path,
        _row(
            "What must survive: journal, history, spool.",
            default="$STATE_DIRECTORY, else ~/.local/state/empd",
            example="/var/lib/empd",
        ),
    ]
    runtime_dir: Annotated[
        Path,
        _row(
            "Sockets and what may be lost.",
            default="$RUNTIME_DIRECTORY, else $XDG_RUNTIME_DIR/empd",
            example="/run/empd",
        ),
    ]
    endpoint: Annotated[
        str,
        _row(
            "Where clients connect. tcp needs curve_dir.",
            accepted='"" (a socket in runtime_dir), ipc://PATH or tcp://HOST:PORT',
        ),
    ] = ""
    http: Annotated[
        str,
        _row(
            "Where API and dashboard listen; the address in use is in the file `http` in runtime_dir.",
            accepted="HOST:PORT, port 0 takes any free one",
        ),
    ] = "127.0.0.1:8780"
    http_hosts: Annotated[
        tuple[str, ...],
        _row(
            "Names beside this host's own by which the API may be called: those of a proxy in front of it.",
            accepted="a list of host names, without ports",
        ),
    ] = ()
    gpus: Annotated[
        str | tuple[str, ...],
        _row(
            "Which GPUs this daemon works with.",
            accepted='"auto", "none", "virtual:N" (N stand-ins without a GPU) or a list of GPU UUIDs',
        ),
    ] = "auto"
    durability: Annotated[
        Literal["fsync", "os", "memory"],
        _row(
            "What an acknowledged job survives: fsync a power loss, os the crash of any process, "
            "memory the same with the journal in runtime_dir, until the reboot."
        ),
    ] = "fsync"
    drain_s: Annotated[float, _row("How long running jobs may go on after stop, drain or reload.", ge=0)] = 30.0
    max_crashes: Annotated[int, _row("A job that took this many workers with it is dead-lettered.", ge=1, le=1000)] = 2
    max_host_losses: Annotated[
        int, _row("A job that was running at this many losses of the host is dead-lettered.", ge=1, le=1000)
    ] = 3
    retries: Annotated[
        int, _row("Further attempts after a fault of the job, where neither job nor service says.", ge=0, le=10_000)
    ] = 3
    timeout_s: Annotated[float, _row("Limit of one run, where neither job nor service says; 0 is none.", ge=0)] = 1800.0
    backoff_s: Annotated[float, _row("Wait before the first retry; it doubles each time.", ge=0)] = 1.0
    backoff_max_s: Annotated[float, _row("Longest wait before a retry.", ge=0)] = 60.0
    cancel_grace_s: Annotated[
        float, _row("How long a job may take to stop when told so, before its worker gets TERM.", ge=0)
    ] = 10.0
    term_grace_s: Annotated[float, _row("How long a worker may take to end on TERM, before KILL.", ge=0)] = 5.0
    heartbeat_s: Annotated[float, _row("How often a child shows on the board that it is alive.", ge=0.05, le=60)] = 1.0
    queue_jobs_max: Annotated[int, _row("Unfinished jobs; past it submits are refused for now.", ge=1)] = 5_000_000
    queue_bytes_max: Annotated[int, _size("Payload bytes of unfinished jobs held in memory.")] = 4 << 30
    disk_free_min_bytes: Annotated[
        int, _size("Below this much free disk under state_dir submits are refused for now.")
    ] = 512 << 20
    journal_bytes_max: Annotated[
        int, _size("The journal's size at which trimming no longer waits for slow consumers.")
    ] = 8 << 30
    spool_bytes_max: Annotated[int, _size("Durable payloads and results above 64 KiB, together.")] = 64 << 30
    result_keep_s: Annotated[float, _row("How long a result can be asked for.", ge=0)] = _DAY_S
    history_keep_s: Annotated[float, _row("How long a finished job stays in history.", ge=0)] = 30 * _DAY_S
    assets_keep_s: Annotated[
        float, _row("How long files that jobs made stay on this machine; 0 is for ever. Azure keeps its own.", ge=0)
    ] = 0.0
    idempotency_keep_s: Annotated[
        float, _row("How long an idempotency key is remembered after its job ended.", ge=0)
    ] = _DAY_S
    idempotency_keys_max: Annotated[
        int, _row("Remembered keys; when full, submits with new keys are refused, none is forgotten.", ge=1)
    ] = 1_000_000
    dead_keep_s: Annotated[float, _row("How long a dead-lettered job can be retried.", ge=0)] = 30 * _DAY_S
    unmatchable_keep_s: Annotated[
        float,
        _row(
            "How long a job waits whose workers are no longer configured; then it is dead-lettered, with the reason.",
            ge=0,
        ),
    ] = _DAY_S
    dead_jobs_max: Annotated[int, _row("Dead-lettered jobs kept; past it the oldest go.", ge=1)] = 100_000
    job_log_bytes_max: Annotated[int, _size("Log lines kept of one job.")] = 1 << 20
    telemetry_interval_s: Annotated[
        float, _row("How often the GPUs are asked for temperature, memory, load; 0 is never.", ge=0)
    ] = 5.0
    worker_memory_max_bytes: Annotated[
        int, _size("A worker above this is replaced between two jobs; 0 is no limit. The mapping may say otherwise.")
    ] = 0
    preload: Annotated[
        tuple[str, ...],
        _row(
            "Modules imported once, before children are forked.",
            accepted=f"a list of module names, never an operator's own or {', '.join(NEVER_PRELOADED)}",
        ),
    ] = ("zmq", "msgspec", "uvloop", "aiohttp")
    python_path: Annotated[
        tuple[Path, ...],
        _row("Directories in which workers look for Python modules first.", accepted="a list of directories"),
    ] = ()
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _row("The least that is logged.")] = "info"
    accept_loss: Annotated[
        bool, _row("Start although committed rows of the journal are missing; for this one start only.")
    ] = False
    curve_dir: Annotated[
        Path | None,
        _row("Directory with the CURVE keys that tcp endpoints need.", default="none", example="/etc/empd/curve"),
    ] = None

    @property
    def clients_endpoint(self) -> str:
        """Where clients and the web process reach the broker."""
        return self.endpoint or self._socket("empd.sock")

    @property
    def workers_endpoint(self) -> str:
        """Where workers reach the broker."""
        return self._socket("workers.sock")

    @property
    def history_endpoint(self) -> str:
        """Where the web process answers questions about finished jobs."""
        return self._socket("history.sock")

    @property
    def telemetry_endpoint(self) -> str:
        """Where children send progress, logs and metrics, all of which may be lost."""
        return self._socket(SOCKET_NAME_LONGEST)

    @property
    def journal_path(self) -> Path:
        """The journal; in the runtime directory when nothing has to survive a reboot."""
        return (self.runtime_dir if self.durability == "memory" else self.state_dir) / "journal.db"

    @property
    def survives_power_loss(self) -> bool:
        """What is acknowledged has to be on the disk, and not only with the kernel."""
        return self.durability == "fsync"

    @property
    def history_path(self) -> Path:
        """The database of finished jobs."""
        return self.state_dir / "history.db"

    @property
    def spool_dir(self) -> Path:
        """Durable blobs."""
        return self.state_dir / "spool"

    @property
    def assets_dir(self) -> Path:
        """Files that jobs made, where the mapping keeps them on this machine."""
        return self.state_dir / "assets"

    @property
    def volatile_dir(self) -> Path:
        """Blobs that a reboot may take: memory-backed, one directory for each user and runtime directory."""
        return Path(f"/dev/shm/empd-{os.getuid()}-{zlib.crc32(os.fsencode(self.runtime_dir)):08x}")

    @property
    def http_address(self) -> tuple[str, int]:
        """Host and port of `http`."""
        host, _, port = self.http.rpartition(":")
        return host.strip("[]"), int(port)

    def _socket(self, name: str) -> str:
        return f"ipc://{self.runtime_dir}/{name}"


class Setting(NamedTuple):
    """One row of the table. `type` is the field's annotation; `default` None where `default_text` says more, and
    `example` shows a value there."""

    name: str
    type: Any
    default: Any
    default_text: str
    help: str
    accepted: str
    example: str

    @property
    def environment(self) -> str:
        """The environment variable: `EMPD_STATE_DIR`."""
        return ENVIRONMENT_PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """The option: `--state-dir`."""
        return "--" + self.name.replace("_", "-")


def _table() -> dict[str, Setting]:
    rows = {}
    for field in msgspec.structs.fields(Settings):
        meta = meta_of(field.type)[1]
        assert meta is not None
        assert meta.description is not None
        extra = meta.extra or {}
        default = None if field.required else field.default
        rows[field.name] = Setting(
            name=field.name,
            type=field.type,
            default=default,
            default_text=str(extra.get("default") or plain(default, is_size(field.type))),
            help=meta.description,
            accepted=accepted(field.type),
            example=str(extra.get("example", "")),
        )
    return rows


def plain(value: Any, size: bool = False) -> Any:
    """A setting's value in JSON or TOML terms; sizes as a person writes them."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return format_size(value) if size and value else value


SETTINGS: dict[str, Setting] = _table()
"""The table, in the order of the samples."""
