"""A run in a sentence, and what there is to worry about."""

from pathlib import Path

import pytest
from run_folders import answer, make_run

from lit_sft.evaluation.intervals import mean_interval, wilson_interval
from lit_sft.report.facts import RunFacts
from lit_sft.report.read_run import read_run
from lit_sft.report.verdict import list_worries, tell_state, tell_verdict

PEAK = [(1, 0.0), (2, 1e-3)]
CALM = {"train/learning_rate": [*PEAK, (3, 1e-5)], "val/loss": [(1, 1.0), (2, 0.5), (3, 0.505)]}


def facts_of(figures=None, data=None, **others):
    begin = {"event": "begin", "step": 0, "total_steps": 3, "steps_per_epoch": 1, "data": data}
    end = {"event": "end", "how": "finished"}
    return RunFacts("run", Path("run"), figures or CALM, sessions=[begin, end], **others)


def test_the_verdict_has_the_figures(tmp_path):
    assert tell_verdict(read_run(make_run(tmp_path / "run"))) == (
        "Exact match 25.0% → 50.0% on 4 held-out rows, 95 % interval 15.0% to 85.0%; best after "
        "step 20. Loss on held-out rows 2 → 0.1. 20 of 20 steps, 1,010 tokens/s, 1 min 30 s of "
        "wall time."
    )


def test_scores_have_their_own_figure_and_interval(tmp_path):
    given = [answer(20, row, verdict) for row, verdict in enumerate(["f1 0.5", "f1 1.0", "r", "w"])]
    facts = read_run(make_run(tmp_path / "run", answers=given))
    facts.figures["val/f1"] = [(0, 0.25), (20, 0.75)]
    low, high = mean_interval(1.5, 1.25, 2)
    assert f"F1 25.0% → 75.0% on 4 held-out rows, 95 % interval {low:.1%} to {high:.1%}" in (
        tell_verdict(facts)
    )
    assert facts.interval("val/exact_match", 20) == wilson_interval(1, 2)


def test_a_run_without_figures_has_a_verdict():
    assert tell_verdict(RunFacts("run", Path("run"))) == "No loss is on record. 0 steps."


def test_an_exact_match_that_fell_names_its_best():
    figures = {"val/exact_match": [(0, 0.1), (10, 0.6), (20, 0.55)]}
    assert "10.0% → 55.0%; best after step 10, 60.0%" in tell_verdict(facts_of(figures))


def test_a_calm_run_is_no_worry():
    assert list_worries(facts_of()) == []


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"val/loss": [(1, 1.0), (2, 0.5), (3, 0.6)]}, "rose from 0.5 after step 2 to 0.6"),
        ({"val/loss/a": [(1, 0.5), (2, 0.6)]}, "(val/loss/a) rose from 0.5"),
        ({"val/unfinished": [(0, 0.5), (3, 0.125)]}, "12.5% of the last answers did not end"),
        ({"train/skipped_steps": [(2, 1.0), (3, 2.0)]}, "2 steps were skipped"),
        ({"train/skipped_steps": [(2, 1.0)]}, "A step was skipped"),
        ({"train/loss": [(1, 1.0), (2, float("nan"))]}, "train/loss is not a number in 1 of 2"),
    ],
)
def test_figures_to_worry_about(figures, expected):
    (worry,) = list_worries(facts_of(CALM | figures))
    assert expected in worry


@pytest.mark.parametrize(
    ("ledger", "expected"),
    [
        ({"rows": 9, "dropped": 2}, "2 of 9 rows of train were dropped."),
        ({"rows": 9, "truncated": 3}, "3 of 9 rows of train were cut."),
        ({"repeats": {"train": 7, "test": 2}}, "The questions of 2 rows of train stand in test"),
        ({"kept": 40, "repeats": {}}, None),
    ],
)
def test_rows_to_worry_about(ledger, expected):
    worries = list_worries(facts_of(data={"train": ledger}))
    assert [expected in worry for worry in worries] == ([True] if expected else [])


def test_few_rows_read_over_and_over_are_one():
    facts = facts_of(data={"train": {"kept": 40}})
    facts.sessions[0]["total_steps"] = 88
    (worry,) = list_worries(facts)
    assert worry.startswith("40 rows of train are read 88 times each, and learnt by heart")


def test_the_last_of_a_few_steps_may_have_a_high_rate():
    facts = facts_of({"train/learning_rate": [*PEAK, (3, 2e-4)]})
    assert list_worries(facts) == []
    facts.sessions[0]["total_steps"] = 9
    (worry,) = list_worries(facts)
    assert worry.startswith("The learning rate ended at 2.00e-04, 20% of its peak")


def test_a_run_that_is_not_over_says_so():
    assert "still going on" in tell_state(RunFacts("run", Path("run"), is_going_on=True))
    assert "was killed" in tell_state(RunFacts("run", Path("run")))
    stopped = [{"event": "begin"}, {"event": "end", "how": "SIGTERM received"}]
    assert "stopped: SIGTERM" in tell_state(RunFacts("run", Path("run"), sessions=stopped))
    assert tell_state(facts_of()) == ""


@pytest.mark.parametrize(("total", "worries"), [(49, 0), (50, 1), (400, 1)])
def test_a_schedule_that_does_not_end_at_zero_is_said(total, worries):
    rates = [(1, 0.0), (2, 1e-3), (total, 1e-3)]
    facts = facts_of({"train/learning_rate": rates})
    facts.sessions[0]["total_steps"] = total
    told = list_worries(facts)
    assert len(told) == worries
    assert all(
        text == "The learning rate ended at 1.00e-03, 100% of its peak: so model.schedule has it."
        for text in told
    )


def test_rows_of_train_that_a_test_has_found_in_test_are_said():
    data = {"train": {"split": "train", "repeats": {"val": 0}}}
    measured = [{"data": {"train_rows_in_test": count}} for count in (None, 7)] + [{"data": None}]
    assert list_worries(facts_of(data=data, measured=measured)) == [
        "The questions of 7 rows of train stand in test, too."
    ]
