"""What the pages name exists, and what exists they name."""

from __future__ import annotations

import ast
import re
import shlex
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions

import click
import msgspec
import pytest
from docs_pages import PAGES, README, ROOT, blocks, flat, rows, section, spans

import empd
from empd.builtin import BUILT_IN_CONNECTORS
from empd.cli.codes import MEANINGS
from empd.cli.commands import COMMANDS, Lazy
from empd.client.jobs import JobHandle, JobSet
from empd.client.options import SubmitOptions
from empd.connectors import base
from empd.connectors.context import Context
from empd.job import JobOptions
from empd.mapping import Service, WorkerType
from empd.queue.options import problem
from empd.settings import SETTINGS, plain
from empd.web.app import ROUTES

LINES_MAX = 220
LINE_CHARS_MAX = 130
FIRST_CODE_LINE_MAX = 25
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMAND_LINES = sorted(
    {
        (name, line)
        for name, text in PAGES.items()
        for line in [*spans(text), *(line for block in blocks("sh", text) for line in block.splitlines())]
        if line.startswith("empd ")
    }
)


# --- its shape -------------------------------------------------------------------------------------------------------


def test_the_readme_is_one_page() -> None:
    assert len(README.splitlines()) <= LINES_MAX
    assert max(map(len, README.splitlines())) <= LINE_CHARS_MAX


def test_the_two_commands_come_first_and_exist() -> None:
    commands = [line.split("#")[0].strip() for line in blocks("sh")[0].splitlines()]
    assert commands == ["make demo", "make test"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {*(command.removeprefix("make ") for command in commands), "bench"} <= set(targets)


def test_submit_and_result_in_both_languages_by_line_25() -> None:
    start = "\n".join(README.splitlines()[:FIRST_CODE_LINE_MAX])
    (python,) = blocks("python", start)
    assert ".submit(" in python
    assert ".result()" in python
    assert any("empd submit" in block and "--wait" in block for block in blocks("sh", start))


def test_it_has_the_sections_that_people_look_for() -> None:
    headings = re.findall(r"^## (.+)$", README, re.MULTILINE)
    for heading in ("What you can rely on", "How it works", "Operating it", "Configuration", "Figures"):
        assert heading in headings


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if not target.startswith(("https://", "http://")):
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_the_readme_links_every_other_page() -> None:
    links = {target.rstrip("/") for target in re.findall(r"\]\(([^)]+)\)", README)}
    assert set(PAGES) - {"README.md"} <= links
    assert {"etc/empd.toml", "etc/service-mapping.json", "LICENSE"} <= links


# --- commands and exit codes -----------------------------------------------------------------------------------------


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words begin with, and the words that are left."""
    group: click.Command = Lazy()
    while isinstance(group, click.Group) and words and not words[0].startswith("-"):
        found = group.get_command(click.Context(group), words[0])
        assert found is not None, f"there is no command {words[0]!r}"
        group, words = found, words[1:]
    return group, words


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES, ids=str)
def test_a_command_line_that_a_page_shows_is_one(page: str, line: str) -> None:
    words = shlex.split(line.split(";", maxsplit=1)[0], comments=True)[1:]
    if words[0] in ("COMMAND", "--help"):
        return
    command, left = command_of(words)
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word for word in left if word.startswith("-")} <= known


def test_the_table_has_every_command() -> None:
    named = [span for cells in rows("Command line") for span in spans(cells[0])]
    assert sorted(named) == sorted(f"empd {name}" for name in COMMANDS)


@pytest.mark.parametrize("name", ["config", "journal"])
def test_the_table_has_every_verb_of_a_group(name: str) -> None:
    group, _ = command_of([name])
    assert isinstance(group, click.Group)
    (cells,) = [cells for cells in rows("Command line") if f"`empd {name}`" in cells[0]]
    assert set(spans(cells[1])) == set(group.commands)


def test_exit_codes_are_those_of_the_code() -> None:
    assert " · ".join(f"{code.value} {text}" for code, text in MEANINGS.items()) in flat(README)


# --- settings, mapping, options --------------------------------------------------------------------------------------


def test_settings_in_the_table_exist_with_these_defaults() -> None:
    table = rows("Configuration")
    assert len(table) >= 9
    for names, default, *_ in table:
        said = spans(default) if re.fullmatch(r"(`[^`]+` ?)+", default) else []
        for name, value in zip(spans(names), said or [""] * 9, strict=False):
            assert name in SETTINGS
            if said:
                shown = plain(SETTINGS[name].default, size=name.endswith("_bytes"))
                assert value == (f"{shown:g}" if isinstance(shown, float) else str(shown)), name


def test_retention_is_what_the_table_says_in_words() -> None:
    assert (SETTINGS["result_keep_s"].default, SETTINGS["history_keep_s"].default) == (86_400, 30 * 86_400)
    assert ["`result_keep_s` `history_keep_s`", "a day, 30 days"] in [cells[:2] for cells in rows("Configuration")]


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "systemd/README.md"])
def test_every_name_with_an_underscore_exists(page: str) -> None:
    """Such a name is a setting, a field of the mapping, an option of `submit`, or an attribute."""
    known = {
        *SETTINGS,
        *(field for kind in (WorkerType, Service) for field in kind.__struct_fields__),
        *SubmitOptions.__annotations__,
        "idempotency_key",
        "idempotency_keys",
        *(name for kind in (empd.Client, Context, JobHandle, JobSet, base.Service) for name in dir(kind)),
    }
    for span in spans(PAGES[page]):
        for name in re.findall(r"^(?:context\.)?([a-z]+(?:_[a-z]+)+)(?:\(\)| = .*|/\w+)?$", span):
            assert name in known, f"{page}: {name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_variable_exists(page: str) -> None:
    known = {setting.environment for setting in SETTINGS.values()}
    for name in re.findall(r"\bEMPD_[A-Z_]+", PAGES[page]):
        assert name in known, name


def test_options_of_submit_exist_and_are_told() -> None:
    told = set(spans(section("A service of your own")))
    taken = set(SubmitOptions.__annotations__)
    left_out = {"after", "resources", "trace", "origin"}
    assert taken - told == left_out


def test_what_a_handle_and_a_set_have() -> None:
    for name in ("id", "state", "result", "status", "events", "cancel"):
        assert hasattr(JobHandle, name), name
    for name in ("as_completed", "results", "cancel"):
        assert hasattr(JobSet, name)
    assert {"Client", "AsyncClient"} <= set(empd.__all__)


def test_the_page_is_where_the_readme_says() -> None:
    assert f"the page that shows them is at http://{SETTINGS['http'].default}/" in README


def test_the_samples_have_every_setting() -> None:
    keys = re.findall(r"^#?([a-z_]+) = ", (ROOT / "etc" / "empd.toml").read_text(), re.MULTILINE)
    assert set(keys) == set(SETTINGS) - {"config"}


# --- the rest --------------------------------------------------------------------------------------------------------


def test_http_routes_are_all_told_and_no_other() -> None:
    told = [span for cells in rows("HTTP") for cell in cells for span in spans(cell) if re.match(r"[A-Z]+ /", span)]
    assert sorted(told) == sorted(f"{route.method} {route.path}" for route in ROUTES)


def test_the_map_has_every_room() -> None:
    rooms = {f"empd/{path.parent.name}" for path in (ROOT / "empd").glob("*/__init__.py")}
    told = {span for cells in rows("How it works") for span in spans(cells[0])}
    assert told == {"empd/*.py", *rooms}


OWN = {"empd", *sys.stdlib_module_names}


def names_of(requirements: Iterable[str]) -> set[str]:
    return {re.split(r"[<>=!~ \[]", text)[0].lower() for text in requirements}


def imported() -> set[str]:
    """The distributions whose modules are imported anywhere in the package, those of extras left out."""
    names: set[str] = set()
    for path in (ROOT / "empd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    providers = packages_distributions()
    extras = names_of(text for texts in PROJECT["optional-dependencies"].values() for text in texts)
    found = [{each.replace("_", "-").lower() for each in providers[name]} for name in names - OWN]
    declared = names_of(PROJECT["dependencies"])
    return {min(each & declared or each) for each in found if each & declared or not each & extras}


def test_each_dependency_earns_its_place_in_a_line() -> None:
    (paragraph,) = [part for part in README.split("\n\n") if part.startswith("Dependencies:")]
    assert set(spans(paragraph)) == imported()
    assert imported() <= names_of(PROJECT["dependencies"])


def test_limits_are_the_limits() -> None:
    limits = flat(section("What it does not do yet"))
    assert problem(JobOptions(service="s", after=(1,))).startswith("after is not enforced")
    assert problem(JobOptions(service="s", resources={"vram": 1})).startswith("resources is not enforced")
    assert "`after` (dependencies) and `resources` are refused" in limits


def test_every_built_in_connector_is_described() -> None:
    page = PAGES["empd/connectors/README.md"]
    assert [name for name in BUILT_IN_CONNECTORS if name not in page] == []


def test_figures_are_between_their_marks() -> None:
    begin, end = "<!-- figures: begin -->", "<!-- figures: end -->"
    assert README.index("`make bench bench-peers figures`") < README.index(begin) < README.index(end)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"bench", "bench-peers", "figures"} <= set(targets)


def test_every_extra_is_named() -> None:
    extras = set(PROJECT["optional-dependencies"]) - {"dev"}
    assert f"Extras: {', '.join(sorted(extras))}." in flat(README)


def test_the_changelog_begins_with_this_version() -> None:
    assert re.findall(r"^## (\d+\.\d+\.\d+)", PAGES["CHANGELOG.md"], re.MULTILINE)[0] == empd.__version__
    (line,) = [flat(item) for item in PAGES["CHANGELOG.md"].split("\n- ") if item.startswith("The commands ")]
    (later,) = [flat(item) for item in PAGES["CHANGELOG.md"].split("\n- ") if item.startswith("New commands: ")]
    assert set(spans(line)) | set(spans(later)) == set(COMMANDS)


def test_samples_that_pages_show_are_json_objects() -> None:
    shown = [block for text in PAGES.values() for block in blocks("json", text)]
    assert len(shown) >= 3
    for block in shown:
        assert isinstance(msgspec.json.decode(block), dict)
