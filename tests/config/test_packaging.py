"""The package as others get it: a wheel with all its files, installed alone, by pip and by pipx."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
WHEELS = Path(sys.prefix) / "wheels"
SHIPPED_SUFFIXES = {
    ".py",
    ".sql",
    ".md",
    ".html",
    ".css",
    ".js",
    ".svg",
    ".ico",
    ".png",
    ".json",
    ".toml",
    ".typed",
    ".binpb",
    ".proto",
    ".txt",
}
pytestmark = pytest.mark.timeout(300)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def tracked_files() -> set[str]:
    listing = subprocess.run(["git", "ls-files", "empd"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return {path for path in listing.stdout.split() if (REPOSITORY / path).exists()}


def clean_environ() -> dict[str, str]:
    """Only what the commands need: no variable of ours, packages from the wheels that `make` keeps."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {
        **kept,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(WHEELS),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
    }


def run(*command: str | Path, environ: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        env=environ or clean_environ(),
        cwd=cwd or Path("/"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel() -> Iterator[Path]:
    assert WHEELS.is_dir(), "`make unit` fills it"
    with TemporaryDirectory(prefix="empd-wheel-") as folder:
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=REPOSITORY)
        (built,) = Path(folder).glob("*.whl")
        yield built


def test_wheel_carries_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if name.startswith("empd/")}
    assert tracked_files() <= inside
    assert {Path(name).suffix for name in inside} <= SHIPPED_SUFFIXES
    assert {"empd/py.typed", "empd/wire/PROTOCOL.md"} <= inside
    assert any(name.endswith(".sql") for name in inside)
    assert any(name.startswith("empd/web/page/") for name in inside)
    others = {name.split("/")[0] for name in names - inside}
    assert others == {f"empd-{distribution('empd').version}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def check_command(empd: Path, environ: dict[str, str]) -> None:
    """The command line answers, from a directory where no checkout is near."""
    assert distribution("empd").version in run(empd, "version", environ=environ)
    usage = run(empd, "--help", environ=environ)
    assert "run" in usage
    assert "submit" in usage


def test_installs_into_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path, with_pip=True)
    python = tmp_path / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", wheel)
    check_command(tmp_path / "bin" / "empd", clean_environ())
    assert "run" in run(python, "-m", "empd", "--help")
    place = run(python, "-c", "import empd; print(empd.__file__); empd.Client, empd.AsyncClient")
    assert place.startswith(str(tmp_path))
    found = json.loads(run(python, "-m", "pip", "list", "--format=json"))
    assert {"pytest", "mypy"}.isdisjoint(item["name"] for item in found)
    run(python, "-m", "pip", "check")


def test_installs_by_pipx(wheel: Path, tmp_path: Path) -> None:
    environ = clean_environ() | {
        "PIPX_HOME": str(tmp_path / "home"),
        "PIPX_BIN_DIR": str(tmp_path / "bin"),
        "PIPX_MAN_DIR": str(tmp_path / "man"),
        "PIPX_DEFAULT_PYTHON": sys.executable,
    }
    run(sys.executable, "-m", "pipx", "install", "--quiet", wheel, environ=environ)
    check_command(tmp_path / "bin" / "empd", environ)


def test_import_is_light() -> None:
    """`import empd` loads neither sockets nor event loops; the clients come when asked for."""
    code = "import sys, empd; print(*sorted({'zmq', 'uvloop', 'aiohttp', 'asyncio', 'typer'} & set(sys.modules)))"
    assert run(sys.executable, "-c", code, environ={**os.environ, "PYTHONPATH": str(REPOSITORY)}).split() == []


def test_public_names_are_complete() -> None:
    import empd

    assert set(empd.__all__) == set(dir(empd)) == {"AsyncClient", "Client", "__version__"}
    assert all(getattr(empd, name) for name in empd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Clint'"):
        empd.Clint  # noqa: B018


def imported_packages() -> set[str]:
    """Every package outside the standard library and this project that a module names."""
    names: set[str] = set()
    for path in (REPOSITORY / "empd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add((node.module or "").split(".")[0])
    return names - set(sys.stdlib_module_names) - {"empd"}


def test_dependencies_are_what_the_code_imports() -> None:
    providers = packages_distributions()
    extras = [text for name, texts in PROJECT["optional-dependencies"].items() if name != "dev" for text in texts]
    declared = {canonical(re.split(r"[<>=!~ \[]", text)[0]) for text in (*PROJECT["dependencies"], *extras)}
    undeclared = {
        name for name in imported_packages() if not declared & {canonical(provider) for provider in providers[name]}
    }
    assert undeclared == set()
    assert all(">=" in text for text in PROJECT["dependencies"])


def locked() -> dict[str, str]:
    lines = (REPOSITORY / "requirements-dev.lock").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonical(name): version for name, version in pairs}


def bundled(extra: str) -> list[str]:
    """The extras of the project itself that an extra brings along."""
    own = [text for text in PROJECT["optional-dependencies"][extra] if text.startswith(f"{PROJECT['name']}[")]
    return [name.strip() for text in own for name in text.split("[")[1].rstrip("]").split(",")]


def test_lock_holds_everything_that_is_needed_and_what_is_installed() -> None:
    versions = locked()
    extras = PROJECT["optional-dependencies"]
    needed = [*PROJECT["dependencies"], *(text for extra in ("dev", *bundled("dev")) for text in extras[extra])]
    missing = {canonical(re.split(r"[<>=!~ \[]", text)[0]) for text in needed} - {*versions, PROJECT["name"]}
    assert missing == set()
    for name, version in versions.items():
        assert distribution(name).version == version, name


def test_lock_and_project_name_no_host_and_no_hash() -> None:
    for path in ("requirements-dev.lock", "pyproject.toml", "Makefile", ".ci/run", ".ci/system-packages"):
        text = (REPOSITORY / path).read_text()
        assert "://" not in text, path
        assert "--hash" not in text, path
        assert "index-url" not in text, path


def test_make_without_a_goal_tells_the_goals() -> None:
    said = run("make", "-s", cwd=REPOSITORY)
    assert "make demo" in said
    assert "make test" in said


def test_continuous_integration_runs_what_a_person_runs() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()
