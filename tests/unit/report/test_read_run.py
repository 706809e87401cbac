"""What a run's folder tells, in whatever state it is."""

import math
import os

import pytest
from run_folders import make_run

from lit_sft.errors import InputError
from lit_sft.report.read_run import read_run
from lit_sft.run.lock import hold_folder


def test_a_whole_run_is_read_without_a_remark(tmp_path):
    facts = read_run(make_run(tmp_path / "run"))
    assert (facts.name, facts.step, facts.total_steps) == ("run", 20, 20)
    assert facts.figures["val/exact_match"] == [(0, 0.25), (20, 0.5)]
    assert facts.evaluations() == [0, 20]
    assert [x.verdict for x in facts.problems[0].answers] == ["right", "wrong"]
    assert facts.seconds() == 90
    assert facts.has_finished
    assert not facts.remarks
    low, high = facts.interval("val/exact_match", 20)
    assert 0.14 < low < 0.5 < high < 0.86  # Wilson's, of 2 of 4


@pytest.mark.parametrize("place", ["", "sub"])
def test_what_is_no_run_is_refused_in_a_line(tmp_path, place):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"^report: (there is no folder|'.*' is no run's folder)"):
        read_run(tmp_path / place)


def test_torn_and_damaged_lines_are_left_out_and_counted(tmp_path):
    root = make_run(tmp_path / "run")
    with (root / "logs" / "metrics.csv").open("a") as file:
        file.write("21,0.1,0.0")
    for name in ("answers.jsonl", "sessions.jsonl"):
        with (root / "logs" / name).open("a") as file:
            file.write('[1]\n{"step": 20, "row"')
    facts = read_run(root)
    assert facts.step == 20
    assert len(facts.problems) == 4
    assert facts.remarks == [
        "logs/sessions.jsonl: 2 lines are torn or damaged, and left out",
        "logs/metrics.csv: a line is torn or damaged, and left out",
        "logs/answers.jsonl: 2 lines are torn or damaged, and left out",
    ]


@pytest.mark.parametrize("text", ["", "loss,step\n1,2\n", "\0\0\0\0", "step,a,a\n1,2,3\n"])
def test_figures_without_names_leave_the_rest(tmp_path, text):
    root = make_run(tmp_path / "run")
    (root / "logs" / "metrics.csv").write_text(text)
    (root / "config.yaml").write_text("a: [")
    facts = read_run(root)
    assert facts.figures == {}
    assert facts.config == {}
    assert len(facts.problems) == 4
    assert [remark.partition(":")[0] for remark in facts.remarks] == ["metrics.csv", "config.yaml"]


def test_what_is_no_number_is_kept_as_such(tmp_path):
    root = make_run(tmp_path / "run")
    with (root / "logs" / "metrics.csv").open("a") as file:
        file.write("21,nan,0,1000,1,,\n22,inf,0,1000,1,,\n")
    losses = read_run(root).figures["train/loss"]
    assert [step for step, value in losses if not math.isfinite(value)] == [21, 22]


def test_samples_of_a_former_version_give_no_interval(tmp_path):
    root = make_run(tmp_path / "run")
    (root / "logs" / "answers.jsonl").rename(root / "logs" / "generations.jsonl")
    facts = read_run(root)
    assert len(facts.problems) == 4
    assert facts.interval("val/exact_match", 20) is None


def test_a_killed_run_ended_when_it_last_wrote(tmp_path):
    root = make_run(tmp_path / "run", how="")
    noon = 1767261600  # 2026-01-01T10:00:00Z
    os.utime(root / "logs" / "metrics.csv", (noon + 40, noon + 40))
    facts = read_run(root)
    assert facts.seconds() == 40
    assert not facts.has_finished
    assert not facts.is_going_on


def test_a_held_folder_is_one_of_a_run_that_is_going_on(tmp_path):
    root = make_run(tmp_path / "run", how="")
    with hold_folder(root):
        assert read_run(root).is_going_on
    assert not read_run(root).is_going_on
