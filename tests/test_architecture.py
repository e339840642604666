"""The house rules, read off the syntax trees of every file under empd/: who may import whom, and how big things may be.

Each rule is a function from parsed modules to a list of findings; one test runs it over the tree, and one shows
that it fires on planted code.
"""

from __future__ import annotations

import ast
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "empd"

LEAVES = {"wire", "memory", "store", "queue", "connectors", "assets"}
MAY_IMPORT: dict[str, set[str]] = {
    "words": {"words"},
    "public face": {"words", "client"},  # empd/__init__.py: the few exported names
    "main": {"cli"},  # empd/__main__.py
    **{leaf: {"words", leaf} for leaf in LEAVES},
    "supervisor": {"words", "memory", "supervisor"},
    "server": {"words", "memory", "server"},
    **{room: {"words", room} | LEAVES for room in ("broker", "worker", "telemetry", "client")},
    "web": {"words", "client", "web"} | LEAVES,
    "bench": {"words", "supervisor", "broker", "worker", "telemetry", "client", "web", "bench"} | LEAVES,
    "cli": {"words", "supervisor", "broker", "worker", "telemetry", "client", "web", "bench", "cli"} | LEAVES,
}

FILE_LINES_MAX = 450
FUNCTION_LINES_MAX = 60
METHODS_MAX = 25
PARAMETERS_MAX = 6

# Option lists that users type: each option is one keyword, as in the wire's JobOptions, and none can be left out.
LONG_OPTION_LISTS = {
    ("client", "submit"),
    ("client", "submit_many"),
    ("client", "__init__"),
}

TOP_LEVEL = {
    "pyproject.toml",
    "empd",
    "tests",
    "bench",
    "systemd",
    "etc",
    "README.md",
    "Makefile",
    "LICENSE",
    "CHANGELOG.md",
    "requirements.lock",
    "requirements-dev.lock",
}
BUILD_PRODUCTS = {"build", "dist", "__pycache__"}


@dataclass(frozen=True)
class Module:
    """One source file: dotted name, path as shown in findings, text, tree."""

    name: str
    path: str
    text: str
    tree: ast.Module
    is_package: bool = False

    @property
    def room(self) -> str:
        parts = self.name.split(".")
        if parts == ["empd"]:
            return "public face"
        if parts == ["empd", "__main__"]:
            return "main"
        if len(parts) > 2 or self.is_package:
            return parts[1]
        return "words"


def parse(name: str, text: str, is_package: bool = False) -> Module:
    path = name.replace(".", "/") + ("/__init__.py" if is_package else ".py")
    return Module(name, path, text, ast.parse(text, path), is_package)


def load() -> list[Module]:
    modules = []
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        modules.append(parse(".".join(parts[:-1] if is_package else parts), file.read_text(), is_package))
    return modules


MODULES = load()
NAMES = {module.name for module in MODULES}


# --- imports -----------------------------------------------------------------------------------------------------


def imported(module: Module, names: set[str]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import of this package, wherever it stands; relative ones resolved."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "empd":
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            if base.split(".")[0] != "empd":
                continue
            for alias in node.names:
                if base == "empd" and alias.name == "__version__":
                    continue  # a constant that every room may say
                deeper = f"{base}.{alias.name}"
                yield node.lineno, deeper if deeper in names else base


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    kept = parts[: len(parts) - node.level + (1 if module.is_package else 0)]
    return ".".join([*kept, *([node.module] if node.module else [])])


def room_of(name: str, names: set[str], packages: set[str]) -> str:
    parts = name.split(".")
    if len(parts) == 1:
        return "public face"
    if len(parts) > 2 or name in packages or name not in names:
        return parts[1]
    return "main" if parts[1] == "__main__" else "words"


def forbidden_edges(modules: list[Module]) -> list[str]:
    names = {module.name for module in modules}
    packages = {module.name for module in modules if module.is_package}
    findings = []
    for module in modules:
        allowed = MAY_IMPORT.get(module.room)
        if allowed is None:
            findings.append(f"{module.path}: {module.room} is not a room of the map")
            continue
        for line, target in imported(module, names):
            room = room_of(target, names, packages)
            if room not in allowed:
                findings.append(f"{module.path}:{line}: {module.room} → {room} ({module.name} imports {target})")
    return findings


def cycles(modules: list[Module]) -> list[str]:
    """Import cycles, each as `a → b → a`. Imports that wait in functions count."""
    names = {module.name for module in modules}
    graph = {m.name: sorted({t for _, t in imported(m, names)} & names - {m.name}) for m in modules}
    findings: list[str] = []
    state: dict[str, int] = {}  # 1: on the path, 2: done

    def visit(name: str, path: list[str]) -> None:
        state[name] = 1
        for target in graph[name]:
            if state.get(target) == 1:
                findings.append(" → ".join([*path[path.index(target) :], target]))
            elif target not in state:
                visit(target, [*path, target])
        state[name] = 2

    for name in graph:
        if name not in state:
            visit(name, [name])
    return findings


# --- size --------------------------------------------------------------------------------------------------------


def code_lines(module: Module) -> set[int]:
    """Numbers of the lines that hold code: not blank, not only a comment, not a docstring."""
    lines: set[int] = set()
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type not in skipped and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def too_big(modules: list[Module]) -> list[str]:
    findings = []
    for module in modules:
        lines = code_lines(module)
        if len(lines) > FILE_LINES_MAX:
            findings.append(f"{module.path}: {len(lines)} code lines, at most {FILE_LINES_MAX}")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                methods = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
                if len(methods) > METHODS_MAX:
                    findings.append(f"{module.path}: class {node.name} has {len(methods)} methods, ≤ {METHODS_MAX}")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = len(lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
                if size > FUNCTION_LINES_MAX:
                    findings.append(f"{module.path}: {node.name} has {size} lines, at most {FUNCTION_LINES_MAX}")
                count = _parameters(node)
                if count > PARAMETERS_MAX and (module.room, node.name) not in LONG_OPTION_LISTS:
                    findings.append(f"{module.path}: {node.name} takes {count} parameters, at most {PARAMETERS_MAX}")
    return findings


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = node.args
    named = [a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]
    if named and named[0] in {"self", "cls"}:
        named = named[1:]
    return len(named) + (arguments.vararg is not None) + (arguments.kwarg is not None)


# --- habits ------------------------------------------------------------------------------------------------------

SERIALISERS = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle"}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b")


def _imports_of(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and not node.level:
        return {(node.module or "").split(".")[0]}
    return set()


def _is_sleep(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "time" and any(alias.name == "sleep" for alias in node.names)
    return (
        isinstance(node, ast.Attribute)
        and node.attr == "sleep"
        and isinstance(node.value, ast.Name)
        and node.value.id == "time"
    )


def _is_print(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"


def _is_broad(node: ast.ExceptHandler) -> bool:
    caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(isinstance(item, ast.Name) and item.id in {"Exception", "BaseException"} for item in caught)


def bad_habits(modules: list[Module]) -> list[str]:
    findings = []
    for module in modules:
        text = module.text.splitlines()
        for number, line in enumerate(text, 1):
            if found := UNFINISHED.search(line):
                findings.append(f"{module.path}:{number}: {found[0]}: finish it or file it")
        for node in ast.walk(module.tree):
            where = f"{module.path}:{getattr(node, 'lineno', 0)}"
            serialisers = sorted(_imports_of(node) & SERIALISERS)
            findings += [f"{where}: imports {name}; bytes of others are never run" for name in serialisers]
            if _is_sleep(node):
                findings.append(f"{where}: time.sleep; wait on a condition with a deadline")
            if isinstance(node, ast.ExceptHandler):
                if node.type is None:
                    findings.append(f"{where}: bare except")
                elif _is_broad(node) and not any("#" in text[n] for n in (node.lineno - 1, node.lineno - 2)):
                    findings.append(f"{where}: broad except without its reason in a comment there or above")
            if _is_print(node) and module.room != "cli":
                findings.append(f"{where}: print; only cli prints")
    return findings


# --- the tree ----------------------------------------------------------------------------------------------------


def test_every_import_goes_downward() -> None:
    assert forbidden_edges(MODULES) == []


def test_no_import_cycles() -> None:
    assert cycles(MODULES) == []


def test_nothing_is_too_big() -> None:
    assert too_big(MODULES) == []


def test_no_bad_habits() -> None:
    assert bad_habits(MODULES) == []


def test_every_package_is_a_room_of_the_map() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("**/*.py"))}
    assert rooms - set(MAY_IMPORT) == set()


def test_top_level_holds_only_what_is_named() -> None:
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    found = {name for name in found if not name.endswith(".egg-info")}
    assert found - TOP_LEVEL - BUILD_PRODUCTS == set()


# --- each rule fires ---------------------------------------------------------------------------------------------


def planted(**files: str) -> list[Module]:
    """Modules from `empd__wire__codec="source"`; a name that ends in `__` is a package."""
    modules = []
    for name, text in files.items():
        is_package = name.endswith("__") and not name.endswith("main__")
        modules.append(parse(name.removesuffix("__").replace("__", "."), textwrap.dedent(text), is_package))
    return modules


@pytest.mark.parametrize(
    ("importer", "source", "edge"),
    [
        ("empd__wire__codec", "from empd.queue import decide", "wire → queue"),
        ("empd__queue__decide", "def late():\n    import empd.store.journal", "queue → store"),
        ("empd__supervisor__process", "from empd.wire import frames", "supervisor → wire"),
        ("empd__broker__loop", "from empd.client import Client", "broker → client"),
        ("empd__web__server", "from empd.broker.loop import run", "web → broker"),
        ("empd__clock", "from empd.wire import frames", "words → wire"),
        ("empd__clock", "import empd", "words → public face"),
        ("empd__worker__loop", "if TYPE_CHECKING:\n    from empd.broker import loop", "worker → broker"),
        ("empd__client__sync", "from ..web import server", "client → web"),
        ("empd__stray__thing", "", "stray is not a room"),
    ],
)
def test_an_upward_import_is_found_and_named(importer: str, source: str, edge: str) -> None:
    findings = forbidden_edges(planted(**{importer: source}))
    assert len(findings) == 1
    assert edge in findings[0]


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("empd__wire__codec", "from empd.errors import ProtocolError\nfrom empd.wire import frames"),
        ("empd__web__server", "from empd.client import AsyncClient"),
        ("empd__cli__run", "from empd.supervisor.process import run"),
        ("empd__clock", "import time"),
    ],
)
def test_a_downward_import_is_let_through(importer: str, source: str) -> None:
    words = planted(empd__errors="", empd__wire__="", empd__wire__frames="")
    assert forbidden_edges(words + planted(**{importer: source})) == []


def test_a_cycle_is_found() -> None:
    modules = planted(
        empd__wire__one="from empd.wire import two", empd__wire__two="def f():\n    from .one import x", empd__wire__=""
    )
    assert cycles(modules) == ["empd.wire.one → empd.wire.two → empd.wire.one"]


def test_docstrings_comments_and_blanks_are_not_code() -> None:
    (module,) = planted(
        empd__clock='"""One\ntwo"""\n# three\n\nx = """a\nb"""\n\n\ndef f():\n    """Doc."""\n    return x\n'
    )
    assert code_lines(module) == {5, 6, 9, 11}


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        ("x = 1\n" * 451, "451 code lines"),
        ("def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
        ("class A:\n" + "".join(f"    def m{i}(self): ...\n" for i in range(26)), "class A has 26 methods"),
        ("def f(a, b, c, d, e, *, g, h): ...", "f takes 7 parameters"),
    ],
)
def test_a_big_thing_is_found(source: str, finding: str) -> None:
    findings = too_big(planted(empd__clock=source))
    assert len(findings) == 1
    assert finding in findings[0]


def test_the_limits_themselves_are_let_through() -> None:
    source = "def f(self, a, b, c, d, e, g):\n" + "    x = 1\n" * 59 + "y = 1\n" * 390
    assert too_big(planted(empd__clock=source)) == []


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        ("import time\ntime.sleep(1)", "time.sleep"),
        ("from time import sleep", "time.sleep"),
        ("try:\n    x = 1\nexcept:\n    pass", "bare except"),
        ("try:\n    x = 1\nexcept Exception:\n    pass", "broad except"),
        ("try:\n    x = 1\nexcept (OSError, BaseException):\n    pass", "broad except"),
        ("print(1)", "only cli prints"),
        ("import pickle", "imports pickle"),
        ("def f():\n    from marshal import loads", "imports marshal"),
        ("x = 1  # TO" + "DO: more", "finish it"),
    ],
)
def test_a_bad_habit_is_found(source: str, finding: str) -> None:
    findings = bad_habits(planted(empd__clock=source))
    assert len(findings) == 1
    assert finding in findings[0]


def test_a_broad_except_with_its_reason_and_a_print_in_cli_are_let_through() -> None:
    source = "try:\n    x = 1\nexcept Exception:  # the connector is not ours\n    print(1)"
    assert bad_habits(planted(empd__cli__run=source)) == []
