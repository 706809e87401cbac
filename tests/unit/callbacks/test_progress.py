"""What is said while a run goes on: what was measured, once, and how far a long evaluation is."""

from types import SimpleNamespace

import pytest
import torch

from lit_sft.callbacks import progress
from lit_sft.callbacks.progress import Latest, Progress


def test_a_figure_that_was_not_measured_again_is_not_said_again():
    latest, loss, match = Latest(), torch.tensor(1.5), torch.tensor(0.25)
    assert latest.note({"val/exact_match": match}, 0) == ["val/exact_match"]
    latest.note({"val/exact_match": match, "train/loss": loss}, 3)
    assert latest.describe_new(3) == {"loss": "1.5000", "exact_match": "0.250 (step 0)"}
    assert latest.describe_new(3) == {}
    # A validation comes behind the line of its step.
    latest.note({"train/loss": loss, "val/loss": torch.tensor(2.0)}, 3)
    same = torch.tensor(0.25)  # measured anew, with the same result
    latest.note({"val/exact_match": same, "train/loss": torch.tensor(1.0)}, 6)
    assert latest.describe_new(6) == {
        "loss": "1.0000", "val_loss": "2.0000 (step 3)", "exact_match": "0.250",
    }  # fmt: skip
    assert latest.describe(7, mark="@{:,}")["val_loss"] == "2.0000@3"


@pytest.fixture
def bar(monkeypatch):
    shown = Progress()
    assert not shown.is_terminal
    shown._trainer = SimpleNamespace(is_global_zero=True)
    shown.now = 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: shown.now)
    return shown


def answer(bar, seconds_each, total=100):
    for ended in range(total + 1):
        bar.tell_answers(ended, total)
        bar.now += seconds_each


def test_an_evaluation_of_minutes_says_how_far_it_is(bar, capsys):
    answer(bar, 3.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "answered 10/100 after 30 s"
    assert lines[-1] == "answered 100/100 after 5 min 0 s"
    assert len(lines) == 10
    answer(bar, 3.0)  # the next one begins anew
    assert capsys.readouterr().out.splitlines() == lines


def test_a_short_one_says_nothing(bar, capsys):
    answer(bar, 0.05)
    assert capsys.readouterr().out == ""


def test_another_rank_says_nothing(bar, capsys):
    bar._trainer.is_global_zero = False
    answer(bar, 3.0)
    assert capsys.readouterr().out == ""
