"""The charts as Bokeh draws them: one document, whose figures share their steps.

Bokeh takes a quarter of a second to import, so that only what writes a page imports this.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from bokeh.document import Document
from bokeh.model import Model
from bokeh.models import (
    BasicTicker,
    BoxZoomTool,
    ColumnDataSource,
    LinearScale,
    NoOverlap,
    NumeralTickFormatter,
    PrintfTickFormatter,
    Range1d,
)
from bokeh.models.annotations import Span
from bokeh.plotting import figure
from bokeh.resources import Resources

HEIGHT = 240
"""Of a chart, in pixels of CSS; its width is that of the page."""
DASHES = ("solid", "dashed", "dotted", "dashdot")
FEW_POINTS = 60
"""Points are shown of a series that has fewer."""
STEPS, POINTER = "steps", "pointer"
"""Names of the range and of the upright line that all charts share, for the page's script."""
SIGNS = {
    "evaluated": ("short ticks at the foot: evaluated", "faint", "solid", 0.04),
    "resumed": ("dashed lines: resumed", "c3", "dashed", 1.0),
    "skipped": ("red lines: skipped", "bad", "solid", 1.0),
}
"""Of marked steps: in words, colour, dash and height as a part of the chart's."""
SIGNS_OF_RUNS = {
    "evaluated": "short ticks at the foot: evaluated",
    "resumed": "dashed lines: resumed",
    "skipped": "unbroken lines: skipped",
}
"""The same in words, where each run has a colour."""
Marks = Sequence[Mapping[str, Sequence[int]]]
"""Of each run, as `make_marks` returns them."""


class Line(NamedTuple):
    """A line of the legend."""

    label: str
    colour: int
    """A place in the page's palette."""
    dash: str
    is_faint: bool
    """Whether it is drawn behind its running mean."""
    last: float | None
    parts: str
    """Ids of what is drawn of it, with spaces between; the first is that of the line."""


class Chart(NamedTuple):
    """What the page's template has to know of a chart."""

    title: str
    unit: str
    lines: list[Line]


class Drawing(NamedTuple):
    """All charts of a page."""

    charts: list[Chart]
    document: dict[str, Any]
    """JSON of Bokeh's document; its roots are the figures of the charts in order."""
    roots: list[str]


def draw_charts(charts: Sequence[Mapping[str, Any]], marks: Marks) -> Drawing:
    """Return the charts, drawn.

    A colour is a name in the page's style sheet, so that dark and light are the page's matter: a
    model's first tag has the names by property.

    Args:
        charts: As `make_charts` returns them.
        marks: Of each run, as `make_marks` returns them.
    """
    document = Document()
    steps = [step for chart in charts for series in chart["series"] for step in series["x"]]
    shared = _span_steps(steps)
    pointer = Span(dimension="height", location=0, visible=False, name=POINTER)
    _colour(pointer, line_color="faint")
    known, roots = [], []
    for chart in charts:
        plot = _draw_frame(chart, shared)
        plot.add_layout(pointer)
        lines = [_draw_series(plot, series) for series in chart["series"]]
        _draw_marks(plot, marks)
        document.add_root(plot)
        known.append(Chart(chart["title"], chart["unit"], lines))
        roots.append(plot.id)
    return Drawing(known, dict(document.to_json(deferred=False)), roots)


def write_short(value: float) -> str:
    """Return a figure with four digits, or whole where it has more; as the page's script does."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def list_signs(marks: Marks) -> list[str]:
    """Return what the marks of steps mean, as far as there are any."""
    told = {kind: text for kind, (text, *_) in SIGNS.items()} if len(marks) < 2 else SIGNS_OF_RUNS
    signs = [text for kind, text in told.items() if any(one.get(kind) for one in marks)]
    return [*signs, "marks have the colours of their runs"] if signs and len(marks) > 1 else signs


def read_script() -> str:
    """Return the script that draws: Bokeh's core, out of its own wheel."""
    return "\n".join(Resources(mode="inline", components=["bokeh"], log_level="error").js_raw)


def _span_steps(steps: Sequence[int]) -> Range1d:
    first, last = min(steps, default=0), max(steps, default=1)
    edge = max(1, last - first) * 0.015
    return Range1d(start=first - edge, end=last + edge, bounds="auto", name=STEPS)


def _draw_frame(chart: Mapping[str, object], steps: Range1d) -> Any:
    low, high, kind = _span_values(chart)
    plot: Any = figure(
        height=HEIGHT, sizing_mode="stretch_width", min_width=200, toolbar_location=None,
        x_range=steps, y_range=Range1d(start=low, end=high), y_axis_type=kind,
        tools=[BoxZoomTool(dimensions="width")],
        background_fill_color=None, border_fill_color=None, outline_line_color=None,
        min_border_left=64, min_border_right=8, output_backend="svg",
    )  # fmt: skip
    plot.extra_y_ranges = {"marks": Range1d(start=0, end=1)}
    plot.extra_y_scales = {"marks": LinearScale()}
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
    plot.xaxis.ticker = BasicTicker(min_interval=1)
    plot.yaxis.formatter = PrintfTickFormatter(format="%.4g")
    for axis in (*plot.xaxis, *plot.yaxis):
        axis.major_label_text_font_size = "12px"
        axis.minor_tick_line_color = None
        axis.major_label_policy = NoOverlap(min_distance=8)
        _colour(axis, axis_line_color="line", major_tick_line_color="line",
                major_label_text_color="ink")  # fmt: skip
    for grid in plot.grid:
        _colour(grid, grid_line_color="line")
    return plot


def _span_values(chart: Mapping[str, Any]) -> tuple[float, float, Literal["linear", "log"]]:
    """Return the ends of the vertical axis, and whether it is linear or of a logarithm."""
    if chart["scale"] == "share":
        return -0.02, 1.02, "linear"
    values = [y for series in chart["series"] for y in series["y"] if y is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if chart["scale"] == "log" and low > 0:
        return low / 1.3, high * 1.3, "log"
    return min(0.0, low), high + ((high - min(0.0, low)) or 1.0) * 0.05, "linear"


def _draw_series(plot: Any, series: Mapping[str, Any]) -> Line:
    colour, dash = f"c{series['colour'] % 8}", DASHES[series["dash"] % len(DASHES)]
    columns = {x: _as_array(series[x]) for x in ("x", "y", "low", "high") if x in series}
    source = ColumnDataSource(columns)
    line = plot.line(
        "x", "y", source=source, name=series["label"], line_dash=dash,
        line_width=1 if series.get("faint") else 2, line_alpha=0.45 if series.get("faint") else 1,
    )  # fmt: skip
    drawn = [line]
    if "low" in series:
        drawn.append(plot.segment("x", "low", "x", "high", source=source, line_width=2))
        drawn[-1].glyph.line_alpha = 0.5
    if len(series["x"]) < FEW_POINTS and series["column"] != "clip":
        drawn.append(plot.scatter("x", "y", source=source, size=6))
    for renderer in drawn:
        has_fill = hasattr(renderer.glyph, "fill_color")
        _colour(renderer.glyph, line_color=colour, **({"fill_color": colour} if has_fill else {}))
    known = [y for y in series["y"] if y is not None]
    return Line(
        series["label"], series["colour"] % 8, dash, series.get("faint", False),
        known[-1] if known else None, " ".join(renderer.id for renderer in drawn),
    )  # fmt: skip


def _draw_marks(plot: Any, marks: Marks) -> None:
    for number, of_run in enumerate(marks):
        for kind, (_, colour, dash, height) in SIGNS.items():
            if steps := of_run.get(kind):
                drawn = plot.segment(
                    list(steps), 0, list(steps), height, y_range_name="marks", line_dash=dash
                )
                _colour(drawn.glyph, line_color=f"c{number % 8}" if len(marks) > 1 else colour)


def _colour(model: Model, **names: str) -> None:
    model.tags = [names]


def _as_array(values: Sequence[float | None]) -> object:
    """Return float64 `[points]`, NaN where there is none: bytes, which JSON has no NaN for."""
    return np.array([math.nan if y is None else y for y in values], dtype=np.float64)
