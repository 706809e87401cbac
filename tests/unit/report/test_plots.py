"""Charts as Bokeh's document: what it holds, and what its colours are called."""

import base64
import gzip
import math
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from run_folders import make_run

from lit_sft.report.curves import make_charts, make_marks
from lit_sft.report.facts import RunFacts
from lit_sft.report.plots import draw_charts, list_signs, read_script, write_short
from lit_sft.report.read_run import read_run


def find(value, name):
    """All models of a kind in a document's JSON."""
    if isinstance(value, dict):
        own = [value] if value.get("type") == "object" and value.get("name") == name else []
        return own + [x for inner in value.values() for x in find(inner, name)]
    return [x for inner in value for x in find(inner, name)] if isinstance(value, list) else []


def read_array(value, kind):
    data = gzip.decompress(base64.b64decode(value["array"]["data"]))
    return np.frombuffer(data, kind).tolist()


@pytest.fixture
def charts(tmp_path):
    facts = read_run(make_run(tmp_path / "run"))
    facts.figures["train/loss"][4] = (5, float("nan"))
    return make_charts([facts]), [make_marks(facts) | {"resumed": [7]}]


def test_what_is_drawn_has_the_numbers_of_the_run(charts):
    drawing = draw_charts(*charts)
    assert [chart.title for chart in drawing.charts] == [
        "Loss", "Exact match", "Gradient norm", "Learning rate", "Tokens a second",
    ]  # fmt: skip
    assert len(set(drawing.roots)) == len(drawing.charts)
    train = next(x for x in find(drawing.document, "ColumnDataSource"))
    columns = dict(train["attributes"]["data"]["entries"])
    assert read_array(columns["x"], "float64") == list(range(1, 21))
    values = read_array(columns["y"], "float64")
    assert values[:4] == pytest.approx([2, 1, 2 / 3, 0.5])
    assert np.isnan(values[4])


def test_a_line_of_the_legend_says_what_is_last_and_how_it_looks(charts):
    train, held_out = draw_charts(*charts).charts[0].lines
    assert (train.label, train.last, held_out.label, held_out.last) == (
        "train/loss", 0.1, "val/loss", 0.1,
    )  # fmt: skip
    assert train.colour != held_out.colour
    assert len(train.parts.split()) == 2  # the line and its points


def test_colours_are_names_of_the_style_sheet(charts):
    document = str(draw_charts(*charts).document)
    style = files("lit_sft.report").joinpath("page.css").read_text()
    used = set(re.findall(r"\('\w+_color', '([^']+)'\)", document))
    assert used == {"c0", "c1", "c3", "ink", "line", "faint"}
    assert all(f"--{name}:" in style for name in used)


def test_marks_are_explained_where_there_are_any(charts):
    assert list_signs(charts[1]) == [
        "short ticks at the foot: evaluated", "dashed lines: resumed",
    ]  # fmt: skip
    assert list_signs([{}]) == []


def test_marks_of_several_runs_have_their_colours(charts):
    two = [{"resumed": [7]}, {"resumed": [9], "skipped": [3]}]
    assert list_signs(two) == [
        "dashed lines: resumed", "unbroken lines: skipped", "marks have the colours of their runs",
    ]  # fmt: skip
    document = draw_charts(charts[0], two).document
    dashed = [x for x in find(document, "Segment") if "[6]" in str(x) or "dashed" in str(x)]
    colours = {name for x in dashed for name in re.findall(r"'c\d'", str(x))}
    assert colours == {"'c0'", "'c1'"}


def test_figures_out_of_all_bounds_are_drawn_too():
    series = {"train/loss": [(1, 1e-300), (2**40, 1e300)], "train/grad_norm": [(1, math.nan)]}
    drawing = draw_charts(make_charts([RunFacts("run", Path("run"), series)]), [])
    assert [chart.lines[0].last for chart in drawing.charts] == [1e300, None]


def test_nothing_can_be_drawn_of_nothing():
    drawing = draw_charts([], {})
    assert (drawing.charts, drawing.roots) == ([], [])


def test_bokeh_s_core_comes_from_its_wheel_and_fits_into_a_page():
    script = read_script()
    assert script.startswith("/* BEGIN bokeh.min.js */")
    assert "</script" not in script
    assert len(script.encode()) < 1_350_000


@pytest.mark.parametrize(
    ("value", "text"), [(0.123456, "0.1235"), (10_011.4, "10,011"), (-2e-5, "-2e-05"), (0.0, "0")]
)
def test_figures_are_short(value, text):
    assert write_short(value) == text
