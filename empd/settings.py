"""The settings: one table. Its rows are the fields of `Settings`; files, environment, flags, samples, schema and
documentation all derive from them.

The setting `state_dir` is `state_dir` in `empd.toml`, `EMPD_STATE_DIR` in the environment and `--state-dir` on the
command line; the later wins. Sizes are bytes or texts like `512 MiB`, times are seconds, lists on one line are
separated by commas.
"""

from __future__ import annotations

import os
import re
import tomllib
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from empd.checking import accepted, convert, did_you_mean, format_size, is_size, meta_of, unknown_key
from empd.errors import ConfigError

CONFIG_FILE = Path("/etc/empd/empd.toml")
MAPPING_FILE = Path("/etc/empd/service-mapping.json")
ENVIRONMENT_PREFIX = "EMPD_"
SOCKET_PATH_BYTES_MAX = 107
"""What the kernel takes as the path of a unix socket."""

_SOCKET_NAME_LONGEST = "telemetry.sock"
_ENDPOINT = re.compile(r"ipc://.+|tcp://(\[[0-9a-fA-F:]+\]|[^:/\s]+):\d{1,5}")
_HOST = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.IGNORECASE)
_NEVER_PRELOADED = ("torch", "numpy", "grpc")
VIRTUAL_GPUS_MAX = 64
_UUID_PREFIXES = ("GPU-", "MIG-")
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
    """Every setting of the daemon, checked. Made by `load`; tests may construct one directly."""

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
            accepted=f"a list of module names, never an operator's own or {', '.join(_NEVER_PRELOADED)}",
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
        return self._socket(_SOCKET_NAME_LONGEST)

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

    @property
    def virtual_gpus(self) -> int | None:
        """How many stand-ins `gpus` asks for; None when it does not speak of virtual ones."""
        text = self.gpus if isinstance(self.gpus, str) else ""
        return int(text.removeprefix("virtual:")) if text.startswith("virtual:") else None

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


class Loaded(NamedTuple):
    """Settings, and for each name where its value came from (`default`, a file, a variable or a flag)."""

    settings: Settings
    sources: dict[str, str]


def load(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings that hold. See `load_with_sources`."""
    return load_with_sources(flags, environ).settings


def load_with_sources(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Loaded:
    """The settings from file, environment and flags (the later wins), and where each came from.

    `flags` maps names to values, None meaning not given; `environ` defaults to the process's. Raises ConfigError
    with all problems at once, each `WHERE: KEY: what is wrong; accepted: …`.
    """
    gathered = _gather(flags or {}, os.environ if environ is None else environ)
    if not gathered.problems:
        settings = Settings(**gathered.values)
        gathered.problems += _cross_check(settings, gathered.where)
        if not gathered.problems:
            return Loaded(settings, gathered.sources)
    raise ConfigError(gathered.problems)


def load_places(environ: Mapping[str, str] | None = None) -> Loaded:
    """As `load_with_sources`, for who only looks for a daemon: what is wrong elsewhere in the settings is passed over
    (with defaults in its place), since the daemon that runs has not read it yet."""
    gathered = _gather({}, os.environ if environ is None else environ)
    if gathered.lost:
        raise ConfigError(gathered.problems)
    return Loaded(Settings(**gathered.values), gathered.sources)


def _gather(flags: Mapping[str, Any], environ: Mapping[str, str]) -> _Gathered:
    given = {name.replace("-", "_"): value for name, value in flags.items() if value is not None}
    gathered = _Gathered()
    gathered.from_flags(given)
    gathered.from_environment(environ)
    gathered.from_file(_config_file(gathered))
    gathered.fill_defaults(environ)
    return gathered


_PLACES = frozenset({"config", "endpoint", "runtime_dir"})


class _Gathered:
    """Values taken so far. Sources are read strongest first: a name that has a value keeps it."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.keys: dict[str, str] = {}
        self.problems: list[str] = []
        self.lost = False  # it cannot be said where the daemon is

    def where(self, name: str) -> str:
        """`WHERE: KEY` of a name's value, for problems."""
        source = self.sources.get(name, "default")
        return f"{source}: {self.keys.get(name, name)}"

    def take(self, name: str, value: Any, source: str, key: str, *, from_text: bool) -> None:
        """Converts a value and keeps it, unless a stronger source gave one; mistakes are reported either way."""
        row = SETTINGS[name]
        try:
            result = _absolute(_normal(name, convert(row.type, value, from_text=from_text)))
            _check_value(name, result)
        except ValueError as error:
            reason = f" ({error})" if isinstance(error, _Wrong) else ""
            self.problems.append(f"{source}: {key}: {value!r} does not fit{reason}; accepted: {row.accepted}")
            self.lost |= name in _PLACES
            return
        if name not in self.values:
            self.values[name], self.sources[name], self.keys[name] = result, source, key

    def from_flags(self, flags: Mapping[str, Any]) -> None:
        for name, value in flags.items():
            flag = "--" + name.replace("_", "-")
            if name not in SETTINGS:
                known = [row.flag for row in SETTINGS.values()]
                self.problems.append(f"command line: {flag}: unknown setting{did_you_mean(flag, known)}")
            else:
                self.take(name, value, "command line", flag, from_text=True)

    def from_environment(self, environ: Mapping[str, str]) -> None:
        known = {row.environment: name for name, row in SETTINGS.items()}
        for variable, value in environ.items():
            if not variable.startswith(ENVIRONMENT_PREFIX) or value == "":
                continue
            if variable not in known:
                self.problems.append(
                    f"environment: {variable}: unknown setting{did_you_mean(variable, known)}; accepted: "
                    "the name of a setting in upper case after EMPD_ (`empd config show` lists them)"
                )
            else:
                self.take(known[variable], value, "environment", variable, from_text=True)

    def from_file(self, path: Path | None) -> None:
        if path is None:
            return
        table, problem = _read_toml(path)
        if problem:
            self.problems.append(problem)
            self.lost = True
        for key, value in table.items():
            if key not in SETTINGS or key == "config":
                known = [name for name in SETTINGS if name != "config"]
                self.problems.append(f"{path}: {key}: {unknown_key(key, known)}")
            else:
                self.take(key, value, str(path), key, from_text=False)

    def fill_defaults(self, environ: Mapping[str, str]) -> None:
        places: dict[str, Callable[[], Path | None]] = {
            "config": lambda: CONFIG_FILE if CONFIG_FILE.exists() else None,
            "mapping": lambda: MAPPING_FILE if MAPPING_FILE.exists() else None,
            "state_dir": lambda: default_state_dir(environ),
            "runtime_dir": lambda: default_runtime_dir(environ),
        }
        for name, row in SETTINGS.items():
            if name not in self.values:
                self.values[name] = places[name]() if name in places else row.default
                self.sources[name] = "default"


class _Wrong(ValueError):
    """A value of the right type that still cannot be; the text says why."""


def _normal(name: str, value: Any) -> Any:
    """One UUID is a list of one."""
    return (value,) if name == "gpus" and isinstance(value, str) and value.startswith(_UUID_PREFIXES) else value


def _check_value(name: str, value: Any) -> None:
    if name == "http":
        host, colon, port = value.rpartition(":")
        if not (host and colon and port.isdecimal() and int(port) <= 65535):
            raise _Wrong("not an address")
    elif name == "endpoint" and value and not _ENDPOINT.fullmatch(value):
        raise _Wrong("not an endpoint")
    elif name == "http_hosts":
        for host in value:
            if not _HOST.fullmatch(host):
                raise _Wrong(f"{host!r} is not a host name")
    elif name == "gpus":
        _check_gpus(value)
    elif name == "preload":
        for module in value:
            if module.split(".")[0] in _NEVER_PRELOADED:
                raise _Wrong(f"{module} must not be loaded in the supervisor")
            if not all(part.isidentifier() for part in module.split(".")):
                raise _Wrong(f"{module!r} is not a module's name")


def _check_gpus(value: str | tuple[str, ...]) -> None:
    if isinstance(value, tuple):
        if not value or len(set(value)) != len(value) or not all(uuid.startswith(_UUID_PREFIXES) for uuid in value):
            raise _Wrong("UUIDs begin with GPU- or MIG-, each once")
    elif value.startswith("virtual:"):
        count = value.removeprefix("virtual:")
        if not count.isdecimal() or not 1 <= int(count) <= VIRTUAL_GPUS_MAX:
            raise _Wrong(f"N is from 1 to {VIRTUAL_GPUS_MAX}")
    elif value not in ("auto", "none"):
        raise _Wrong("not a choice of GPUs")


def _cross_check(settings: Settings, where: Callable[[str], str]) -> list[str]:
    problems = []
    longest = len(os.fsencode(settings.runtime_dir)) + 1 + len(_SOCKET_NAME_LONGEST)
    if longest > SOCKET_PATH_BYTES_MAX:
        room = SOCKET_PATH_BYTES_MAX - 1 - len(_SOCKET_NAME_LONGEST)
        problems.append(
            f"{where('runtime_dir')}: {str(settings.runtime_dir)!r} is too long for unix sockets; "
            f"accepted: a path of at most {room} bytes"
        )
    if settings.endpoint.startswith("ipc://"):
        socket_path = os.fsencode(settings.endpoint.removeprefix("ipc://"))
        if len(socket_path) > SOCKET_PATH_BYTES_MAX:
            problems.append(
                f"{where('endpoint')}: {settings.endpoint!r} is too long for a unix socket; "
                f"accepted: a path of at most {SOCKET_PATH_BYTES_MAX} bytes"
            )
    if settings.endpoint.startswith("tcp://") and settings.curve_dir is None:
        problems.append(
            f"{where('endpoint')}: {settings.endpoint!r} would be open to anyone; accepted: tcp:// together with "
            "curve_dir, the directory of the CURVE keys"
        )
    if settings.backoff_max_s < settings.backoff_s:
        problems.append(
            f"{where('backoff_max_s')}: {settings.backoff_max_s:g} is below backoff_s; "
            f"accepted: a number from {settings.backoff_s:g}"
        )
    for name in ("mapping", "curve_dir"):
        path = getattr(settings, name)
        if path is not None and not path.exists():
            problems.append(f"{where(name)}: {str(path)!r} does not exist; accepted: {SETTINGS[name].accepted}")
    return problems


def _absolute(value: Any) -> Any:
    if isinstance(value, Path):
        try:
            return Path(os.path.abspath(value.expanduser()))
        except RuntimeError:
            raise _Wrong("no such user") from None
    if isinstance(value, tuple):
        return tuple(_absolute(item) for item in value)
    return value


def _config_file(gathered: _Gathered) -> Path | None:
    path = gathered.values.get("config")
    if path is None:
        return CONFIG_FILE if CONFIG_FILE.exists() else None
    assert isinstance(path, Path)
    return path


def _read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """The file's table, or a problem."""
    try:
        return tomllib.loads(path.read_text("utf-8")), ""
    except tomllib.TOMLDecodeError as error:
        return {}, f"{path}: not TOML: {error}; accepted: lines of the form key = value"
    except UnicodeDecodeError as error:
        return {}, f"{path}: not UTF-8 at byte {error.start}; accepted: TOML in UTF-8"
    except OSError as error:
        return {}, f"{path}: cannot be read: {error.strerror}; accepted: a readable TOML file"


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Where state lies when nobody says: systemd's directory, else the user's XDG state directory."""
    if first := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(first)
    base = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or Path.home()) / ".local/state"
    return Path(base) / "empd"


def default_runtime_dir(environ: Mapping[str, str]) -> Path:
    """Where sockets lie when nobody says: systemd's directory, else XDG's, else one in /tmp."""
    if first := environ.get("RUNTIME_DIRECTORY", "").split(":")[0]:
        return Path(first)
    if base := environ.get("XDG_RUNTIME_DIR"):
        return Path(base) / "empd"
    return Path(f"/tmp/empd-{os.getuid()}")
