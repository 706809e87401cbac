"""Figures by source and grader, their table, and a grader that finds nothing."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_sft.errors import InputError
from lit_sft.evaluation.exact_match import Answer, ExactMatch
from lit_sft.evaluation.intervals import mean_interval, wilson_interval
from lit_sft.evaluation.scores import describe_no_match, format_scores, list_figures, measure

CPU = torch.device("cpu")


def answers(source: str, *grades) -> list[Answer]:
    return [Answer(i, "q", "r", "o", grade, True, source) for i, grade in enumerate(grades)]


MIXED = [*answers("maths", True, False, None, True), *answers("prose", 0.25, 0.75)]


def test_verdicts_and_scores_are_figures_of_their_own():
    figures = measure(MIXED, CPU, ["maths", "prose"], with_interval=True)
    assert figures["exact_match"] == figures["exact_match/maths"] == 0.5
    assert figures["f1"] == figures["f1/prose"] == 0.5
    assert figures["no_answer"] == 1 / 6
    assert (figures["no_answer/maths"], figures["no_answer/prose"]) == (0.25, 0.0)
    assert not {"exact_match/prose", "f1/maths"} & figures.keys()
    ends = figures["exact_match_low/maths"], figures["exact_match_high/maths"]
    assert ends == wilson_interval(2, 4)
    without = {name for name in figures if "_low" not in name and "_high" not in name}
    sources = [answer.source for answer in MIXED]
    assert without == {*list_figures(sources, [answer.grade for answer in MIXED])}


def test_a_task_alone_has_the_figures_of_all():
    grades = [0.5, 1.0]
    assert list_figures(["", ""], grades) == ["f1", "no_answer", "unfinished"]
    assert list(measure(answers("", *grades), CPU)) == ["f1", "no_answer", "unfinished"]


def test_the_table_has_a_line_a_figure():
    figures = measure(MIXED, CPU, ["maths", "prose"], with_interval=True)
    graders = {"maths": "number", "prose": "f1"}
    table = format_scores(figures, graders, {"maths": 4, "prose": 2}).splitlines()
    assert [line.split()[:4] for line in table] == [
        ["source", "grader", "rows", "figure"],
        ["maths", "number", "4", "exact_match"],
        ["prose", "f1", "2", "f1"],
        ["all", "4", "exact_match", "0.5000"],
        ["all", "2", "f1", "0.5000"],
    ]
    assert "0.1500 to 0.8500" in table[1]
    alone = format_scores(measure(answers("", True), CPU, (), True), {"": "exact"}, {"": 1})
    assert [line.split()[:3] for line in alone.splitlines()[1:]] == [["all", "exact", "1"]]


@pytest.mark.parametrize(
    ("grades", "says"),
    [
        ([None] * 64, "the grader 'number' finds no answer in any of 64 answers of maths: one is"),
        ([None] * 63 + [False], "finds none right of 64 answers"),
        ([0.0] * 64, "finds none right of 64 answers"),
        ([None] * 63 + [True], ""),
        ([None] * 63, ""),
    ],
)
def test_a_grader_that_never_matches_is_told_of(grades, says):
    found = answers("maths", *grades)
    figures = measure(found, CPU, ["maths"])
    text = describe_no_match(figures, "number", len(grades), found[0], "maths")
    assert says in text
    assert bool(text) == bool(says)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_the_interval_holds_the_mean_and_mirrors(scores):
    total = len(scores)
    squares = sum(x * x for x in scores)
    low, high = mean_interval(sum(scores), squares, total)
    assert 0 <= low <= sum(scores) / total + 1e-12
    assert sum(scores) / total - 1e-12 <= high <= 1
    assert high - low > 0.5 / (total + 4)
    turned = [1 - x for x in scores]
    mirrored = mean_interval(sum(turned), sum(x * x for x in turned), total)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-9)


@pytest.mark.parametrize("total", [10, 64, 256])
@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: float(rng.random() < 0.9),
        lambda rng: rng.betavariate(2, 5),
        lambda rng: rng.choice([0.0, 0.0, 1.0, rng.random()]),
    ],
    ids=["verdicts", "bunched", "often none or all"],
)
def test_the_interval_holds_the_true_mean_19_times_of_20(draw, total):
    rng = random.Random(0)
    truth = sum(draw(rng) for _ in range(100_000)) / 100_000
    held = 0
    for _ in range(1000):
        scores = [draw(rng) for _ in range(total)]
        low, high = mean_interval(sum(scores), sum(x * x for x in scores), total)
        held += low <= truth <= high
    assert 0.93 <= held / 1000 <= 1


def test_scores_add_up_over_ranks_however_they_are_cut():
    whole, first, second = ExactMatch(True), ExactMatch(True), ExactMatch(True)
    scores = [0.1, 0.7, 0.3, 1.0]
    whole.update(scores, [True] * 4)
    first.update(scores[:1], [True])
    second.update(scores[1:], [True] * 3)
    first.merge_state(second)
    assert first.compute() == pytest.approx(whole.compute())


@pytest.mark.parametrize("score", [1.5, -0.1, float("nan")])
def test_a_score_outside_0_to_1_is_an_error_and_counts_nothing(score):
    metric = ExactMatch()
    with pytest.raises(InputError, match="must be from 0 to 1"):
        metric.update([True, score], [True, True])
    assert metric.total == 0
