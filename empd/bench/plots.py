"""The plots of a report, as SVG, by matplotlib (of the extra `report`)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from empd.bench.figures import Plot, shown
from empd.bench.running import BenchError

Line = Mapping[str, Any]
WIDTH_IN, HEIGHT_IN, ROW_IN = 6.4, 3.6, 0.26
BARS_UPRIGHT_MAX = 6
"""More categories than these are rows, so that their names stay readable."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "empd",  # the same figures give the same file
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}
_LABELS = {
    "batch": "jobs in a call",
    "payload_bytes": "payload",
    "waiting": "jobs waiting",
    "workers": "workers",
    "percent_of_capacity": "% of capacity",
    "jobs_per_s": "jobs/s",
    "finished": "jobs finished",
}


def fitting(plot: Plot, lines: Iterable[Line]) -> list[Line]:
    """The figures that the plot shows."""
    return [
        line
        for line in lines
        if plot.x in line["axes"] and all(line["axes"].get(name) == value for name, value in plot.where.items())
    ]


def draw(plot: Plot, lines: Sequence[Line]) -> str:
    """One plot; a line (or group of bars) for each series, with the least and the greatest run. Raises BenchError where
    matplotlib is missing."""
    if plot.of_samples:
        return _svg(plot.title, lambda axes: _shares(axes, plot, lines), HEIGHT_IN)
    series: dict[str, list[Line]] = {}
    for line in lines:
        series.setdefault(str(line["axes"].get(plot.series, "")), []).append(line)
    categories = list(dict.fromkeys(line["axes"][plot.x] for line in lines))
    is_categorical = any(isinstance(one, str) for one in categories)
    rows = len(categories) if is_categorical and len(categories) > BARS_UPRIGHT_MAX else 0

    def paint(axes: Any) -> None:
        if rows:
            _rows(axes, plot, series, categories)
        elif is_categorical:
            _bars(axes, plot, series, categories)
        else:
            _curves(axes, plot, series)
        (axes.set_xlabel if rows else axes.set_ylabel)(lines[0]["unit"])
        if len(series) > 1:
            _legend(axes, len(series))

    return _svg(plot.title, paint, max(HEIGHT_IN, 1.2 + ROW_IN * rows * max(len(series), 1)))


def percentiles(title: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """(percentile, µs) of several histograms, the rare ones spread out as is usual: 90, 99 and 99.9 % equally far."""

    def paint(axes: Any) -> None:
        ticks = (50.0, 90.0, 99.0, 99.9, 99.99)
        for name, points in curves.items():
            places = [(1 / (1 - percent / 100), micros / 1e3) for percent, micros in points if percent < 100]
            axes.plot(*zip(*places, strict=True), marker="o", markersize=3, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks([1 / (1 - tick / 100) for tick in ticks], [f"{tick:g} %" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("of the jobs took at most")
        axes.set_ylabel("ms")
        _legend(axes, len(curves))

    return _svg(title, paint, HEIGHT_IN)


def check() -> None:
    """Raises BenchError where matplotlib is missing."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise BenchError("a report's plots need matplotlib: pip install 'empd[report]'") from None
    assert mpl


def _svg(title: str, paint: Callable[[Any], None], height_in: float) -> str:
    check()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
        paint(axes)
        for axis in (axes.xaxis, axes.yaxis):
            _plain_numbers(axis)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    # As part of a page it is neither a document of its own, nor may its ids meet those of the plot before.
    text = out.getvalue()
    return _own_ids(text[text.index("<svg") :], title)


def _plain_numbers(axis: Any) -> None:
    """1,000,000 and not 1e6, where the ticks are numbers of matplotlib's choice."""
    from matplotlib import ticker

    if isinstance(axis.get_major_formatter(), ticker.ScalarFormatter | ticker.LogFormatter):
        axis.set_major_formatter(lambda value, _: _number(value))
    if axis.get_scale() == "log" and not isinstance(axis.get_minor_formatter(), ticker.NullFormatter):
        low, high = axis.get_view_interval()
        is_narrow = high < 10 * low  # then no power of ten, or one, would have its number
        axis.set_minor_formatter((lambda value, _: _number(value)) if is_narrow else ticker.NullFormatter())


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _own_ids(svg: str, title: str) -> str:
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)


def _curves(axes: Any, plot: Plot, series: Mapping[str, Sequence[Line]]) -> None:
    every = [line for lines in series.values() for line in lines]
    points = sorted({line["axes"][plot.x] for line in every})
    align = {points[0]: "left", points[-1]: "right"}
    first = every[0]
    is_one_bound = first["bound"] is not None and {line["bound"] for line in every} == {first["bound"]}
    for index, (name, lines) in enumerate(series.items()):
        ordered = sorted(lines, key=lambda line: float(line["axes"][plot.x]))
        x = [line["axes"][plot.x] for line in ordered]
        y = [line["value"] for line in ordered]
        axes.errorbar(
            x, y, yerr=_spread(ordered), marker="o", markersize=4, capsize=2, label=_words(name), color=f"C{index}"
        )
        if not is_one_bound:
            for place, line in zip(x, ordered, strict=True):
                _mark(axes, place, line["target"], line, f"C{index}", align.get(place, "center"))
    if is_one_bound:
        _line(axes, first)
    if plot.log_x:
        axes.set_xscale("log")
    axes.set_xticks(points, [_tick(plot.x, point) for point in points])
    axes.minorticks_off()
    axes.margins(y=0.12)  # for what is said above the greatest
    if plot.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(_LABELS.get(plot.x, plot.x.replace("_", " ")))


def _line(axes: Any, line: Line) -> None:
    """A bound that holds for all that is shown."""
    axes.axhline(line["target"], linestyle="--", linewidth=1, color="0.35")
    _say(axes, f"bound {line['bound']}", (1, line["target"]), (0, 3), "right", xycoords=("axes fraction", "data"))


def _mark(axes: Any, x: float, y: float | None, line: Line, color: str, align: str = "center") -> None:
    """A bound that holds for this point; nothing where it has none."""
    if y is None or line["bound"] is None:
        return
    axes.plot([x], [y], marker="_", markersize=22, markeredgewidth=2, linestyle="none", color=color)
    _say(axes, f"bound {line['bound']}", (x, y), (0, 4), align)


def _say(axes: Any, text: str, at: tuple[float, float], beside: tuple[float, float], align: str, **more: Any) -> None:
    """A note that stays readable where it lies over a line."""
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    axes.annotate(
        text,
        at,
        beside,
        textcoords="offset points",
        fontsize=7,
        ha=align,
        bbox=box,
        zorder=5,
        annotation_clip=False,
        **more,
    )


def _shares(axes: Any, plot: Plot, lines: Sequence[Line]) -> None:
    """For each category all its samples in order; the bounds of a median or a percentile stand at their share."""
    names = list(dict.fromkeys(line["axes"][plot.x] for line in lines))
    for index, name in enumerate(names):
        mine = [line for line in lines if line["axes"][plot.x] == name]
        samples = sorted(mine[0]["samples"])
        shares = [100 * (place + 1) / len(samples) for place in range(len(samples))]
        axes.step(samples, shares, where="post", label=name, color=f"C{index}")
        for line in mine:
            if line["bound"] is not None:
                at, said = (line["target"], line["axes"]["share"]), f"{line['axes']['share']} %: bound {line['bound']}"
                axes.plot(*([place] for place in at), marker="|", markersize=16, markeredgewidth=2, color="0.35")
                _say(axes, said, at, (-5, -10), "right")
    axes.set_ylim(0, 102)
    axes.set_xlim(left=0)
    axes.set_xlabel(lines[0]["unit"])
    axes.set_ylabel("% took at most so long")
    if len(names) > 1:
        _legend(axes, len(names))


def _tick(x: str, value: float) -> str:
    if not x.endswith("bytes"):
        return _number(value)
    scale, unit = next((pair for pair in ((1 << 20, "MiB"), (1 << 10, "KiB")) if value >= pair[0]), (1, "B"))
    return f"{value / scale:.4g} {unit}"


def _legend(axes: Any, count: int) -> None:
    """Below the plot, where it hides nothing."""
    axes.figure.legend(loc="outside lower center", ncols=min(count, 4), fontsize=8)


def _bars(axes: Any, plot: Plot, series: Mapping[str, Sequence[Line]], categories: Sequence[str]) -> None:
    width = 0.8 / len(series)
    for index, (name, lines) in enumerate(series.items()):
        places = [categories.index(line["axes"][plot.x]) + (index + 0.5) * width - 0.4 for line in lines]
        axes.bar(places, [line["value"] for line in lines], width, yerr=_spread(lines), capsize=2, label=_words(name))
        for place, line in zip(places, lines, strict=True):
            _mark(axes, place, line["target"], line, "black")
    axes.set_xticks(range(len(categories)), map(_words, categories))
    axes.margins(y=0.12)
    if plot.log_y:
        axes.set_yscale("log")


def _rows(axes: Any, plot: Plot, series: Mapping[str, Sequence[Line]], categories: Sequence[str]) -> None:
    height = 0.8 / len(series)
    for index, (name, lines) in enumerate(series.items()):
        places = [categories.index(line["axes"][plot.x]) + (index + 0.5) * height - 0.4 for line in lines]
        axes.barh(places, [line["value"] for line in lines], height, xerr=_spread(lines), label=_words(name))
        for place, line in zip(places, lines, strict=True):
            end = max(line["value"], line["max"])
            is_end = line["details"].get("again") is not False
            said = f"{'' if is_end else 'not within '}{shown(line['value'])}"
            axes.annotate(said, (end, place), (4, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(range(len(categories)), map(_words, categories))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    if plot.log_y:
        axes.set_xscale("log")


def _spread(lines: Sequence[Line]) -> list[list[float]]:
    """How far the least and the greatest run lie from each value."""
    below = [max(line["value"] - line["min"], 0) for line in lines]
    return [below, [max(line["max"] - line["value"], 0) for line in lines]]
