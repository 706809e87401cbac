"""A loss or a gradient that is not finite changes no weight, and never reaches a checkpoint."""

import re

import pytest
from test_interrupted_runs import kill, read_result, run

from lit_sft.model.nonfinite import MOST_IN_A_ROW
from lit_sft.run.checkpoint_io import AtomicCheckpointIO

LAST = "run/checkpoints/last.ckpt"
TWO_RANKS = ("--trainer.devices", 2, "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu")


def diverge(*steps: int, gradient: bool = False) -> str:
    arguments = f"{{steps: {list(steps)}, gradient: {str(gradient).lower()}}}"
    return f"    - {{class_path: killers.Diverge, init_args: {arguments}}}\n"


def load_last(folder):
    return AtomicCheckpointIO().load_checkpoint(folder / LAST)


@pytest.mark.parametrize("gradient", [False, True], ids=["NaN loss", "Inf gradient"])
def test_stop_names_step_and_rows_and_keeps_the_last_checkpoint_good(tiny_base, tmp_path, gradient):
    stopped = run(tmp_path, tiny_base, callbacks=diverge(5, gradient=gradient))
    assert stopped.status == 1, stopped.stderr
    assert "Traceback" not in stopped.stderr
    figures = r"loss \d\S+, gradient norm inf" if gradient else "loss nan, gradient norm nan"
    # The last window of the first epoch has 3 of the 23 rows.
    assert re.search(rf"optimizer step 5: {figures}, on (train row \d+(, )?){{3}} ", stopped.stderr)
    saved = load_last(tmp_path)
    assert saved["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())


@pytest.fixture(scope="module")
def skipped(tiny_base, tmp_path_factory):
    """A run that skips three of its twelve steps."""
    folder = tmp_path_factory.mktemp("skipped")
    outcome = run(folder, tiny_base, "--model.nonfinite", "skip", callbacks=diverge(2, 3, 7))
    assert outcome.status == 0, outcome.stderr
    assert outcome.stderr.count(": skipped") == 3
    return read_result(folder)


def test_skip_counts_and_logs_and_goes_on(skipped):
    rows = skipped[1]
    counts = {int(row["step"]): row["train/skipped_steps"] for row in rows}
    assert {step: count for step, count in counts.items() if count} == {3: "1", 4: "2", 8: "3"}
    losses = {int(row["step"]) for row in rows if row["train/loss"]}
    assert losses == set(range(1, 13)) - {3, 4, 8}
    assert all(row["train/learning_rate"] for row in rows[1:]), "the schedule goes on"


@pytest.mark.parametrize("killed_at", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_skip_killed_and_resumed_equals_whole(tiny_base, tmp_path, skipped, killed_at):
    """At step 3 the first of two skipped steps in a row is behind the checkpoint, or before it."""
    callbacks = diverge(2, 3, 7) + kill("KillInWindow", killed_at)
    options = ("--model.nonfinite", "skip", "--ckpt_path", "auto", "--checkpoint.every_n_steps", 1)
    statuses = [run(tmp_path, tiny_base, *options, callbacks=callbacks).status for _ in range(2)]
    assert statuses == [-9, 0]
    assert read_result(tmp_path) == skipped


def test_skip_stops_after_several_in_a_row_also_over_a_kill(tiny_base, tmp_path):
    callbacks = diverge(*range(3, 12)) + kill("KillInWindow", 5)
    options = ("--model.nonfinite", "skip", "--ckpt_path", "auto")
    assert run(tmp_path, tiny_base, *options, callbacks=callbacks).status == -9
    stopped = run(tmp_path, tiny_base, *options, callbacks=callbacks)
    assert stopped.status == 1, stopped.stderr
    assert f"optimizer step {3 + MOST_IN_A_ROW - 1}: loss nan" in stopped.stderr
    assert f"the {MOST_IN_A_ROW}th such step in a row" in stopped.stderr
    assert "Traceback" not in stopped.stderr


def test_a_poisoned_weight_is_never_saved(tiny_base, tmp_path):
    """Under `skip` the steps behind it are skipped, but the weight would be in the next save."""
    poisoned = run(tmp_path, tiny_base, "--model.nonfinite", "skip", callbacks=kill("Poison", 5))
    assert poisoned.status == 1
    assert "1 trained tensors are not finite" in poisoned.stderr
    assert "Traceback" not in poisoned.stderr
    assert load_last(tmp_path)["global_step"] == 4
    assert run(tmp_path, tiny_base, "--ckpt_path", "last").status == 0


@pytest.mark.parametrize("policy", [pytest.param("stop", marks=pytest.mark.slow), "skip"])
def test_two_ranks_decide_the_same_when_one_diverges(tiny_base, tmp_path, policy):
    options = (*TWO_RANKS, "--model.nonfinite", policy, "--trainer.max_steps", 4)
    outcome = run(tmp_path, tiny_base, *options, callbacks=diverge(1), of_ranks=True)
    assert "Traceback" not in outcome.stderr
    assert re.search(r"optimizer step 1: loss nan.* on (train row \d+(, )?){8} ", outcome.stderr)
    assert outcome.status == (policy == "stop"), outcome.stderr
    if policy == "skip":
        assert load_last(tmp_path)["nonfinite"] == {"skipped": 1, "in_a_row": 0}
