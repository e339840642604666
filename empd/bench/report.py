"""One page of HTML, complete in itself, and each of its plots as a file: from the lines of one or several runs."""

from __future__ import annotations

import html
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from empd.bench import plots, tables
from empd.bench.figures import Scenario, shown
from empd.bench.peers import PEERS
from empd.bench.running import BenchError
from empd.bench.scenarios import SCENARIOS
from empd.bench.tables import Table

Line = Mapping[str, Any]
INTRODUCTION = (
    "empd is a daemon for one GPU box: it takes jobs, keeps them on the disk so that none is lost, and gives each to "
    "exactly one worker. This page says how fast it does so and what a job costs, beside what the machine itself can "
    "do. <code>make bench</code>, or <code>empd bench --report DIR</code>, makes it again on your machine."
)
DEFINITIONS = (
    "Through the public <code>Client</code>, in one client process, every result delivered to its handle.",
    "Settings as shipped, with every feature on (history, metrics, the web process); <code>durability</code> as named.",
    "Jobs survive crashes (<code>memory</code>), also reboots (<code>os</code>), also power cuts (<code>fsync</code>).",
    "A service that does nothing, without a GPU; two workers unless said otherwise; payloads of 100 bytes unless said.",
    "At most 20,000 jobs submitted and not ended (window); 512 jobs at once in a worker (credit).",
    "A value is the median of its samples, mostly one a run; error bars go from the least to the greatest sample.",
    "<code>p50</code>, <code>p99</code>: what half of all do not exceed, and 99 % of all.",
    "Bounds, dashes in the plots, are for four cores; missed (✗) on fewer, the verdict is <i>machine too small</i>.",
    "Only ratios within one run carry over to another machine, which is why the floors are measured with the rest.",
)
_WORST_FIRST = ("missed", "machine too small", "met")
_TABLES: dict[str, Callable[[Sequence[Line]], Table | None]] = {
    "peers": lambda lines: tables.peers(lines, with_settings=True),
    "throughput": tables.matrix,
}
"""Sections that begin with a table of their own."""

_CLASSES = {"met": "met", "missed": "missed", "machine too small": "small"}
VERSIONS = ("python", "sqlite", "empd", "pyzmq", "msgspec", "uvloop", "aiohttp")
_HIDDEN = ("hdr", "curve_us")
_STYLE = """
:root { --ink: #1d2330; --dim: #667; --line: #d9dde5; --paper: #fff; --card: #f6f7f9; color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; } h2 { margin: 2.8rem 0 .3rem; font-size: 1.2rem; } h2 a { color: inherit;
margin-right: .5rem; } h2:has(a) { font-weight: 400; } h2 a { font-weight: 600; }
p, ul { max-width: 62rem; } .dim { color: var(--dim); } nav a { margin-right: .9rem; white-space: nowrap; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th, td { padding: .28rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; } .n { text-align: right; font-variant-numeric: tabular-nums; white-space:
nowrap; } .name { font-family: ui-monospace, monospace; font-size: .82rem; white-space: nowrap; }
.plots { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1rem; margin: .8rem 0; }
.plots figure { margin: 0; padding: .5rem; background: var(--card); border-radius: .5rem; flex: 0 1 35rem; }
.plots svg { width: 100%; height: auto; display: block; }
.wide { margin-bottom: 1.5rem; } .wide th { white-space: normal; vertical-align: bottom; }
.wide td:not(:last-child) { white-space: nowrap; }
.verdict { padding: .05rem .5rem; border-radius: 1rem; font-size: .8rem; white-space: nowrap; }
.met { background: #d8f3dc; color: #14532d; } .missed { background: #fde2e1; color: #7f1d1d; }
.small { background: #fdf0cd; color: #6b4e00; } details { margin: .4rem 0; } summary { cursor: pointer; color:
var(--dim); } pre { white-space: pre-wrap; font-size: .78rem; background: var(--card); padding: .6rem; border-radius:
.4rem; margin: 0; }
"""


def write(lines: Sequence[Line], into: Path) -> Path:
    """Writes `index.html` and an SVG for each plot; returns the page. Raises BenchError without any lines, and as
    `check` does."""
    if not lines:
        raise BenchError("there are no figures to report")
    check(into)
    parts = []
    for section in (*SCENARIOS.values(), PEERS):
        mine = [line for line in lines if line["scenario"] == section.name]
        if mine:
            drawn = dict(_plots(section, mine))
            for title, svg in drawn.items():
                name = re.sub(r"\W+", "-", title.lower()).strip("-")
                (into / f"{section.name}.{name}.svg").write_text(svg, "utf-8")
            parts.append(_section(section, mine, list(drawn.values())))
    page = into / "index.html"
    page.write_text(_page(lines, parts), "utf-8")
    return page


def check(into: Path) -> None:
    """Makes the directory. Raises BenchError where it cannot be written, or matplotlib is missing."""
    plots.check()
    try:
        into.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"no report can be written to {into}: {error.strerror}") from None
    if not os.access(into, os.W_OK):
        raise BenchError(f"no report can be written to {into}: it is not writable")


def _plots(section: Scenario, lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
    for plot in section.plots:
        if len(shown_lines := plots.fitting(plot, lines)) > 1:
            yield plot.title, plots.draw(plot, shown_lines)
    curves = {line["name"].rpartition(".")[2]: line["details"]["curve_us"] for line in lines if _curve(line)}
    if curves:
        named = {f"{name.removeprefix('at')} % of capacity": points for name, points in curves.items()}
        yield "Latency by percentile", plots.percentiles("Latency by percentile", named)


def _curve(line: Line) -> bool:
    return "curve_us" in line["details"]


def _page(lines: Sequence[Line], parts: Sequence[str]) -> str:
    bounded = sorted((line for line in lines if line["bound"]), key=lambda line: _WORST_FIRST.index(line["verdict"]))
    counts = Counter(line["verdict"] for line in bounded)
    verdicts = " ".join(f"{_verdict(name)} {count}" for name, count in counts.items())
    sections = [one for one in (*SCENARIOS.values(), PEERS) if any(line["scenario"] == one.name for line in lines)]
    links = " ".join(f'<a href="#{one.name}">{one.name}</a>' for one in sections)
    body = [
        "<h1>empd, measured</h1>",
        f"<p>{INTRODUCTION}</p>",
        *(f'<p class="dim">{said}</p>' for said in _machines(lines)),
        f"<nav>{links}</nav>",
        "<h2>Definitions</h2><ul>" + "".join(f"<li>{text}</li>" for text in DEFINITIONS) + "</ul>",
        f"<h2>Bounds</h2><p>{verdicts}</p>{_table(bounded, linked=True)}" if bounded else "",
        *parts,
    ]
    title = "<title>empd, measured</title>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{title}<style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _machines(lines: Sequence[Line]) -> Iterator[str]:
    """One text for each machine and version; how busy it was before each of the runs there is told in one."""
    loads: dict[str, list[float]] = {}
    machines: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        said = str({name: found for name, found in line["machine"].items() if name != "load_before"})
        machines[said] = line["machine"]
        loads.setdefault(said, []).append(line["machine"]["load_before"])
    for said, one in machines.items():
        least, most = min(loads[said]), max(loads[said])
        yield _machine(one, f"{least:g}" if least == most else f"{least:g} to {most:g}")


def _machine(one: Mapping[str, Any], load: str) -> str:
    memory = f"{one['memory_bytes'] / 2**30:.0f} GiB"
    said = [
        f"{one['cores']} cores of {one['cpu']}, {memory}, load {load} before the start",
        f"Linux {one['kernel']}, state on {one['state_filesystem']}",
        ", ".join(f"{name} {one[name]}" for name in VERSIONS),
    ]
    said += [f"commit {one['commit']}"] if one["commit"] else []
    said += [f"the daemon at {one['endpoint']}"] if one["endpoint"] else []
    said += ["<b>quick sizes: the figures show that all works, and count for less</b>"] if one["quick"] else []
    return " · ".join(text if text.startswith("<b>") else html.escape(text) for text in said)


def _section(section: Scenario, lines: Sequence[Line], drawn: Sequence[str]) -> str:
    explained = (sys.modules[section.measure.__module__].__doc__ or "").strip()
    figures = "".join(f"<figure>{svg}</figure>" for svg in drawn)
    table = _TABLES[section.name](lines) if section.name in _TABLES else None
    return "\n".join(
        (
            f'<h2 id="{section.name}"><a href="#{section.name}">{section.name}</a> {_marked(section.help)}</h2>',
            *map(_paragraph, explained.split("\n\n")),
            f'<div class="plots">{figures}</div>' if figures else "",
            _texts(table) if table else "",
            _table(lines),
            f"<details><summary>details and settings</summary>{_details(lines)}</details>",
        )
    )


def _paragraph(text: str) -> str:
    """Of how it is measured. Lines with columns stay as they are."""
    is_laid_out = re.search(r"\S {2,}", text) is not None
    return f"<pre>{html.escape(text)}</pre>" if is_laid_out else f'<p class="dim">{_marked(text)}</p>'


def _marked(text: str) -> str:
    """Words in backticks and stars as they are meant."""
    return re.sub(r"\*(\w+)\*", r"<i>\1</i>", re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text)))


def _texts(table: Table) -> str:
    head, *rows = (
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in (("th", table.head), *(("td", row) for row in table.rows))
    )
    return f'<div class="scroll"><table class="wide">{head}{"".join(rows)}</table></div>'


def _table(lines: Sequence[Line], linked: bool = False) -> str:
    head = "<th>figure</th><th class=n>value</th><th></th><th class=n>least … greatest</th><th class=n>samples</th>"
    rows = [
        f"<td class=name>{_name(line, linked)}</td><td class=n>{shown(line['value'])}</td><td>{line['unit']}</td>"
        f"<td class=n>{shown(line['min'])} … {shown(line['max'])}</td><td class=n>{_samples(line)}</td>"
        f"<td class=n>{line['bound'] or ''}</td><td>{_verdict(line['verdict'])}</td>"
        for line in lines
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<div class=scroll><table><tr>{head}<th class=n>bound</th><th>verdict</th></tr>{body}</table></div>"


def _samples(line: Line) -> str:
    """How many, and what of them the value is where that is not the median."""
    statistic = line.get("statistic", "median")  # lines of before have none
    return str(line["runs"]) if statistic == "median" else f"{line['runs']} ({statistic})"


def _name(line: Line, linked: bool) -> str:
    name = html.escape(line["name"])
    return f'<a href="#{line["scenario"]}">{name}</a>' if linked else name


def _verdict(verdict: str | None) -> str:
    return f'<span class="verdict {_CLASSES[verdict]}">{verdict}</span>' if verdict else ""


def _details(lines: Sequence[Line]) -> str:
    rows = []
    for line in lines:
        kept = {name: value for name, value in line["details"].items() if name not in _HIDDEN}
        cells = (_pairs(kept), _pairs(line["settings"]))
        rows.append(f"<tr><td class=name>{html.escape(line['name'])}</td><td>{cells[0]}</td><td>{cells[1]}</td></tr>")
    head = "<tr><th>figure</th><th>details</th><th>settings</th></tr>"
    return f"<div class=scroll><table>{head}{''.join(rows)}</table></div>"


def _pairs(values: Mapping[str, Any]) -> str:
    return html.escape(", ".join(f"{name} = {_said(value)}" for name, value in values.items()))


def _said(value: Any) -> str:
    return shown(value) if isinstance(value, float) else str(value)
