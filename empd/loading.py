"""Where the settings come from: `state_dir` is `state_dir` in `empd.toml`, `EMPD_STATE_DIR` in the environment and
`--state-dir` on the command line; the later wins. Sizes are bytes or texts like `512 MiB`, times are seconds, lists on
one line are separated by commas.

What cannot be is told with all problems at once, each with where it stands and what is accepted there.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from empd.checking import convert, did_you_mean, unknown_key
from empd.errors import ConfigError
from empd.settings import (
    CONFIG_FILE,
    ENVIRONMENT_PREFIX,
    MAPPING_FILE,
    NEVER_PRELOADED,
    SETTINGS,
    SOCKET_NAME_LONGEST,
    Settings,
)

SOCKET_PATH_BYTES_MAX = 107
"""What the kernel takes as the path of a unix socket."""

VIRTUAL_GPUS_MAX = 64
_UUID_PREFIXES = ("GPU-", "MIG-")
_ENDPOINT = re.compile(r"ipc://.+|tcp://(\[[0-9a-fA-F:]+\]|[^:/\s]+):\d{1,5}")
_HOST = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.IGNORECASE)
_PLACES = frozenset({"config", "endpoint", "runtime_dir"})


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
            if module.split(".")[0] in NEVER_PRELOADED:
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
    longest = len(os.fsencode(settings.runtime_dir)) + 1 + len(SOCKET_NAME_LONGEST)
    if longest > SOCKET_PATH_BYTES_MAX:
        room = SOCKET_PATH_BYTES_MAX - 1 - len(SOCKET_NAME_LONGEST)
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
