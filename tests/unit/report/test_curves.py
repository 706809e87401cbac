"""Curves: what is drawn, thinned without losing a spike, and marked."""

import math
from pathlib import Path

import pytest
from run_folders import make_run

from lit_sft.report.curves import MOST_POINTS, make_charts, make_marks, smooth, thin
from lit_sft.report.facts import RunFacts
from lit_sft.report.read_run import read_run


def test_charts_of_a_run(tmp_path):
    charts = {x["title"]: x for x in make_charts([read_run(make_run(tmp_path / "run"))])}
    assert set(charts) == {
        "Loss", "Exact match", "Gradient norm", "Learning rate", "Tokens a second",
    }  # fmt: skip
    train, held_out = charts["Loss"]["series"]
    assert (train["label"], train["x"][:2], train["y"][:2]) == ("train/loss", [1, 2], [2, 1])
    assert (held_out["x"], held_out["y"]) == ([0, 20], [2, 0.1])
    assert train["colour"] != held_out["colour"]
    (matches,) = charts["Exact match"]["series"]
    for low, value, high in zip(matches["low"], matches["y"], matches["high"], strict=True):
        assert low < value < high
    norms = charts["Gradient norm"]["series"]
    assert [x["label"] for x in norms] == ["train/grad_norm", "clipped to 1"]


def test_several_runs_have_a_colour_each(tmp_path):
    runs = [read_run(make_run(tmp_path / name, steps)) for name, steps in (("a", 20), ("b", 9))]
    series = make_charts(runs)[0]["series"]
    assert [(x["label"], x["colour"]) for x in series] == [
        ("a: train/loss", 0), ("a: val/loss", 0), ("b: train/loss", 1), ("b: val/loss", 1),
    ]  # fmt: skip
    assert series[0]["dash"] != series[1]["dash"]


def test_a_source_s_loss_is_drawn_beside_the_others():
    figures = {"train/loss": [(1, 1.0)], "val/loss": [(1, 2.0)], "val/loss/sums": [(1, 3.0)]}
    (chart,) = make_charts([RunFacts("run", Path("run"), figures)])
    assert [x["label"] for x in chart["series"]] == ["train/loss", "val/loss", "val/loss/sums"]


@pytest.mark.parametrize("length", [MOST_POINTS, MOST_POINTS + 1, 100_000])
def test_thinning_keeps_every_spike(length):
    series = [(step, 1000.0 if step == 777 else float(step % 7)) for step in range(length)]
    series[5] = (5, math.nan)
    kept = thin(series, MOST_POINTS)
    assert len(kept) <= MOST_POINTS
    assert (777, 1000.0) in kept
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)


def test_many_runs_share_the_points_of_one():
    series = {"train/tokens_per_second": [(step, float(step)) for step in range(5000)]}
    runs = [RunFacts(f"run {i}", Path("run"), series) for i in range(8)]
    (chart,) = make_charts(runs)
    assert sum(len(x["x"]) for x in chart["series"]) <= MOST_POINTS


def test_what_is_no_number_is_a_gap():
    (chart,) = make_charts(
        [RunFacts("run", Path("run"), {"train/loss": [(1, math.inf), (2, 1.0)]})]
    )
    assert chart["series"][0]["y"] == [None, 1.0]


def test_a_running_mean_is_one():
    assert smooth([(step, 3.0) for step in range(200)])[100] == (100, 3.0)
    noisy = [(step, float(step % 2)) for step in range(1000)] + [(1000, math.nan)]
    assert all(abs(mean - 0.5) < 0.05 for _, mean in smooth(noisy))


def test_marks():
    sessions = [{"event": "begin", "step": step} for step in (0, 7, None)]
    figures = {
        "train/skipped_steps": [(3, 1.0)],
        "val/loss": [(4, 1.0)],
        "val/exact_match": [(0, 0.0)],
    }
    facts = RunFacts("run", Path("run"), figures, sessions=sessions)
    assert make_marks(facts) == {"evaluated": [0, 4], "resumed": [7], "skipped": [3]}
