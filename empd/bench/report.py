"""One page of HTML, complete in itself, and each of its plots as a file: from the lines of one or several runs."""

from __future__ import annotations

import html
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from empd.bench import plots
from empd.bench.figures import Scenario, shown
from empd.bench.peers import PEERS
from empd.bench.scenarios import SCENARIOS

Line = Mapping[str, Any]
DEFINITIONS = (
    "Through the public <code>Client</code>, in one client process, every result delivered to its handle.",
    "Settings as shipped, with every feature on (history, metrics, the web process); <code>durability</code> as named.",
    "A service that does nothing, without a GPU; two workers unless said otherwise; payloads of 100 bytes unless said.",
    "At most 20,000 jobs submitted and not ended (window); 512 jobs at once in a worker (credit).",
    "A value is the median of its runs; error bars and <i>least … greatest</i> are those of the runs.",
    "Bounds hold for a machine of four cores; missed on fewer, the verdict is <i>machine too small</i>.",
    "Only ratios within one run carry over to another machine, which is why the floors are measured with the rest.",
)
_CLASSES = {"met": "met", "missed": "missed", "machine too small": "small"}
VERSIONS = ("python", "sqlite", "empd", "pyzmq", "msgspec", "uvloop", "aiohttp")
_HIDDEN = ("hdr", "curve_us")
_STYLE = """
:root { --ink: #1d2330; --dim: #667; --line: #d9dde5; --paper: #fff; --card: #f6f7f9; color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; } h2 { margin: 2.8rem 0 .3rem; font-size: 1.2rem; } h2 a { color: inherit; }
p, ul { max-width: 62rem; } .dim { color: var(--dim); } nav a { margin-right: .9rem; white-space: nowrap; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th, td { padding: .28rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; } .n { text-align: right; font-variant-numeric: tabular-nums; white-space:
nowrap; } .name { font-family: ui-monospace, monospace; font-size: .82rem; white-space: nowrap; }
.plots { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1rem; margin: .8rem 0; }
.plots figure { margin: 0; padding: .5rem; background: var(--card); border-radius: .5rem; flex: 0 1 35rem; }
.plots svg { width: 100%; height: auto; display: block; }
.verdict { padding: .05rem .5rem; border-radius: 1rem; font-size: .8rem; white-space: nowrap; }
.met { background: #d8f3dc; color: #14532d; } .missed { background: #fde2e1; color: #7f1d1d; }
.small { background: #fdf0cd; color: #6b4e00; } details { margin: .4rem 0; } summary { cursor: pointer; color:
var(--dim); } pre { white-space: pre-wrap; font-size: .78rem; background: var(--card); padding: .6rem; border-radius:
.4rem; margin: 0; }
"""


def write(lines: Sequence[Line], into: Path) -> Path:
    """Writes `index.html` and an SVG for each plot; returns the page. Raises BenchError where matplotlib is missing."""
    into.mkdir(parents=True, exist_ok=True)
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
    machines = {str(line["machine"]): line["machine"] for line in lines}
    bounded = [line for line in lines if line["bound"]]
    counts = Counter(line["verdict"] for line in bounded)
    verdicts = " ".join(f"{_verdict(name)} {count}" for name, count in counts.items())
    sections = [one for one in (*SCENARIOS.values(), PEERS) if any(line["scenario"] == one.name for line in lines)]
    links = " ".join(f'<a href="#{one.name}">{one.name}</a>' for one in sections)
    body = [
        "<h1>empd, measured</h1>",
        *(f'<p class="dim">{_machine(one)}</p>' for one in machines.values()),
        f"<nav>{links}</nav>",
        "<h2>Definitions</h2><ul>" + "".join(f"<li>{text}</li>" for text in DEFINITIONS) + "</ul>",
        f"<h2>Bounds</h2><p>{verdicts}</p>{_table(bounded)}" if bounded else "",
        *parts,
    ]
    title = "<title>empd, measured</title>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{title}<style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _machine(one: Mapping[str, Any]) -> str:
    memory = f"{one['memory_bytes'] / 2**30:.0f} GiB"
    said = [
        f"{one['cores']} × {one['cpu']}, {memory}, load {one['load_before']} before the start",
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
    return "\n".join(
        (
            f'<h2 id="{section.name}"><a href="#{section.name}">{section.name}</a></h2>',
            f"<p>{html.escape(section.help)}</p>",
            f"<details><summary>how it is measured</summary><pre>{html.escape(explained)}</pre></details>",
            f'<div class="plots">{figures}</div>' if figures else "",
            _table(lines),
            f"<details><summary>details and settings</summary>{_details(lines)}</details>",
        )
    )


def _table(lines: Sequence[Line]) -> str:
    head = "<th>figure</th><th class=n>value</th><th></th><th class=n>least … greatest</th><th class=n>runs</th>"
    rows = [
        f"<td class=name>{html.escape(line['name'])}</td><td class=n>{shown(line['value'])}</td><td>{line['unit']}</td>"
        f"<td class=n>{shown(line['min'])} … {shown(line['max'])}</td><td class=n>{line['runs']}</td>"
        f"<td class=n>{line['bound'] or ''}</td><td>{_verdict(line['verdict'])}</td>"
        for line in lines
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<div class=scroll><table><tr>{head}<th class=n>bound</th><th>verdict</th></tr>{body}</table></div>"


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
