"""The curves of one run or of several, as plain values for the page's script."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from lit_sft.report.facts import GRADED, RunFacts, Series, finite

MOST_POINTS = 2_000
"""Of a series, which several runs share. Where it has more, the least and the largest of each
stretch are drawn."""
LEAST_POINTS = 200
"""Of a series of one of many runs."""
SMOOTH = 50
"""A noisy series of more points than twice this has its running mean beside it, of a part of it."""
CHARTS: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("Loss", "nats a token", ("train/loss", "val/loss"), "log"),
    (
        "Exact match",
        "share",
        ("val/exact_match", "val/f1", "val/no_answer", "val/unfinished"),
        "share",
    ),
    ("Gradient norm", "before clipping", ("train/grad_norm",), "linear"),
    ("Learning rate", "", ("train/learning_rate",), "linear"),
    ("Tokens a second", "", ("train/tokens_per_second",), "linear"),
    ("Peak memory", "GiB", ("train/peak_memory_gib",), "linear"),
)
"""Title, unit, columns of `metrics.csv`, those of sources included, and scale of each chart."""


def make_charts(runs: Sequence[RunFacts]) -> list[dict[str, Any]]:
    """Return the charts that have something to show.

    Args:
        runs: One, or several whose curves lie over each other.
    """
    charts = []
    for title, unit, names, scale in CHARTS:
        series = [
            drawn
            for number, facts in enumerate(runs)
            for name in names
            for drawn in _draw(facts, name, number, len(runs))
        ]
        if title == "Gradient norm" and series:
            series += _draw_clip(runs)
        if series:
            _colour(series, len(runs) > 1)
            charts.append({"title": title, "unit": unit, "scale": scale, "series": series})
    return charts


def make_marks(facts: RunFacts) -> dict[str, list[int]]:
    """Return the steps that are marked in the curves: evaluated, resumed and skipped ones."""
    evaluated = {step for name in (*GRADED, "val/loss") for step, _ in facts.figures.get(name, [])}
    resumed = [record.get("step") for record in facts.begins[1:]]
    return {
        "evaluated": sorted(evaluated),
        "resumed": [step for step in resumed if isinstance(step, int)],
        "skipped": [step for step, _ in facts.figures.get("train/skipped_steps", [])],
    }


def thin(series: Series, most: int) -> Series:
    """Return at most `most` points of a series: the least and the largest of each stretch.

    A point that is not a number stays where its stretch has no other.
    """
    if len(series) <= most:
        return series
    width = math.ceil(len(series) / (most // 2))
    kept: Series = []
    for begin in range(0, len(series), width):
        stretch = series[begin : begin + width]
        known = finite(stretch) or stretch[:1]
        ends = {min(known, key=lambda x: x[1]), max(known, key=lambda x: x[1])}
        kept += sorted(ends)
    return kept


def smooth(series: Series) -> Series:
    """Return the running mean of a series, over a fiftieth of its length; NaN is left out."""
    known = finite(series)
    width = max(1, len(known) // SMOOTH)
    sums = [0.0]
    for _, value in known:
        sums.append(sums[-1] + value)
    means = []
    for i, (step, _) in enumerate(known):
        begin, end = max(0, i - width), min(len(known), i + width + 1)
        means.append((step, (sums[end] - sums[begin]) / (end - begin)))
    return means


def _draw(facts: RunFacts, name: str, run: int, runs: int) -> Iterable[dict[str, Any]]:
    most = max(LEAST_POINTS, MOST_POINTS // runs)
    columns = [x for x in facts.figures if x == name or x.startswith(f"{name}/")]
    for column in columns:
        series = facts.figures[column]
        label = f"{facts.name}: {column}" if runs > 1 else column
        is_noisy = column in ("train/loss", "train/grad_norm") and len(series) > 2 * SMOOTH
        drawn = _as_series(label, column, thin(series, most), run)
        if column in GRADED and len(series) <= most:
            bounds = [facts.interval(column, step) for step, _ in series]
            if all(bounds):
                drawn["low"] = [_short(x[0]) for x in bounds if x]
                drawn["high"] = [_short(x[1]) for x in bounds if x]
        yield drawn | {"faint": is_noisy}
        if is_noisy:
            yield _as_series(f"{label}, running mean", column, thin(smooth(series), most), run)


def _draw_clip(runs: Sequence[RunFacts]) -> Iterable[dict[str, object]]:
    asked = [(facts.config.get("model") or {}).get("max_grad_norm") for facts in runs]
    last = max((facts.step for facts in runs), default=0)
    for limit in sorted({x for x in asked if isinstance(x, (int, float)) and x > 0}):
        if last and math.isfinite(limit):
            line: Series = [(1, float(limit)), (last, float(limit))]
            yield _as_series(f"clipped to {limit:g}", "clip", line, 0)


def _colour(series: Sequence[dict[str, object]], by_run: bool) -> None:
    """Give each column a colour, or each run; then a column has a dash of its own."""
    columns = list(dict.fromkeys(drawn["column"] for drawn in series))
    for drawn in series:
        place = columns.index(drawn["column"])
        drawn |= {"colour": drawn["run"], "dash": place} if by_run else {"colour": place, "dash": 0}


def _as_series(label: str, column: str, series: Series, run: int) -> dict[str, object]:
    points = {"x": [x for x, _ in series], "y": [_short(y) for _, y in series]}
    return {"label": label, "column": column, "run": run, **points}


def _short(value: float) -> float | None:
    """Return six digits of a number; None, as JSON has no other word for it, if it is none."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
