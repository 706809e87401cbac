"""Every option of Lightning's trainer works, or is refused in a line before weights load."""

import csv
import json

import lightning.pytorch as pl
import pytest
from command import lit_sft_in_process
from small_run import fit_options

from lit_sft import SFTDataModule, SFTModule, WordProblems
from lit_sft.errors import InputError


def fit(base, folder, *arguments):
    return lit_sft_in_process("fit", *fit_options(base, folder), *arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--trainer.overfit_batches", "2"], "trainer.overfit_batches=2 cannot be set"),
        (["--trainer.overfit_batches", "0.5"], "to overfit, train on a file of a few rows"),
        (["--trainer.limit_train_batches", "0"], "limit_train_batches=0 leaves nothing to train"),
        (["--trainer.max_steps", "0"], "trainer.max_steps=0 leaves nothing to train"),
        (["--trainer.max_epochs", "0"], "trainer.max_epochs=0 leaves nothing to train"),
        (["--trainer.val_check_interval", "99"], "is more than the 16 steps of an epoch"),
        (["--trainer.barebones", "true"], "trainer.barebones cannot be set"),
        (["--trainer.enable_checkpointing", "false"], "checkpoint.every_n_steps makes them rarer"),
        (["--trainer.log_every_n_steps", "5"], "trainer.log_every_n_steps must be 1, got 5"),
        (["--trainer.model_registry", "me/x"], "append lit_sft.HubUpload to trainer.callbacks"),
        (["--trainer.gradient_clip_algorithm", "value"], "model.max_grad_norm, which clips by no"),
        (["--trainer.strategy", "fsdp"], "trainer: The strategy `fsdp` requires a GPU"),
        (["--trainer.strategy", "nowhere"], "trainer: You selected an invalid strategy name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_honoured_is_refused_before_weights_load(
    tiny_base, tmp_path, arguments, says
):
    outcome = fit(tiny_base, tmp_path / "run", *arguments)
    assert outcome.status == 2, outcome
    (line,) = (line for line in outcome.stderr.splitlines() if line.startswith("error: "))
    assert says in line
    assert "Traceback" not in outcome.stderr
    assert "training " not in outcome.stdout
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_trainer_of_one_s_own_is_told_too(tiny_base, tmp_path):
    trainer = pl.Trainer(
        **{"overfit_batches": 1, "max_steps": 1, "accelerator": "cpu", "precision": "32-true"},
        **{"default_root_dir": tmp_path, "logger": False, "enable_checkpointing": False},
    )
    data = SFTDataModule(WordProblems(train_rows=16), val_rows=2)
    with pytest.raises(InputError, match=r"overfit_batches=1 cannot be set"):
        trainer.fit(SFTModule(str(tiny_base)), data)


def test_fast_dev_run_leaves_nothing_behind(tiny_base, tmp_path):
    """Neither an upload, which would need a login, nor files that the run to come stumbles over."""
    callbacks = [
        {"class_path": "lit_sft.HubUpload", "init_args": {"repo_id": "me/nothing"}},
        {"class_path": "lit_sft.GenerationEval", "init_args": {"max_new_tokens": 2}},
    ]
    options = ("--trainer.fast_dev_run", "2", f"--trainer.callbacks={json.dumps(callbacks)}")
    outcome = fit(tiny_base, tmp_path / "run", *options)
    assert outcome.status == 0, outcome.stderr
    assert "step 2/2  loss" in outcome.stdout
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == []


def test_a_run_without_progress_is_silent_between_start_and_end(tiny_base, tmp_path):
    outcome = fit(tiny_base, tmp_path / "run", "--trainer.enable_progress_bar", "false")
    assert outcome.status == 0, outcome.stderr
    assert "step 4/4" not in outcome.stdout
    assert "wrote " in outcome.stdout


def test_a_sanity_check_is_no_figure_of_the_run(tiny_base, tmp_path):
    outcome = fit(tiny_base, tmp_path / "run", "--trainer.num_sanity_val_steps", "1")
    assert outcome.status == 0, outcome.stderr
    with (tmp_path / "run" / "logs" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [bool(row["val/loss"]) for row in rows] == [False, False, False, True]
