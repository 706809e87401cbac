"""Tell the loggers what they would otherwise not know of a run."""

import subprocess
from contextlib import suppress
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

from lit_sft.data.protocol import run_data
from lit_sft.data.tokenizer import hash_template
from lit_sft.errors import InputError
from lit_sft.model.device import describe_device
from lit_sft.model.module import SFTModule
from lit_sft.run.folder import RunFolder, is_trial
from lit_sft.run.metrics_file import MetricsFile, read_columns
from lit_sft.run.sessions import begin_session, end_session
from lit_sft.run.wandb_run import WandbRun

MOST_TOLD = 500
"""Characters of what has ended a run."""


class RecordRun(pl.Callback):
    """Log the resolved config, the data's ledger, the template's hash and the git commit.

    The figures of the run go to `logs/metrics.csv` under its folder, whatever other loggers it has.
    On a resumed run, the metrics file goes on behind the step that the run resumes from, and W&B is
    sent what it lacks of the rows before. `logs/sessions.jsonl` says when a process began to train,
    on what machine and with which versions, and how it ended.
    """

    def __init__(self) -> None:
        self._resumed_from = 0
        self._has_begun = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Open the file of figures, and look at those that a resumed run goes on with.

        Raises:
            InputError: If they cannot be read, or the module or its data are none of a run.
        """
        if not isinstance(pl_module, SFTModule):
            raise InputError(f"a run trains lit_sft.SFTModule, got {type(pl_module).__name__}")
        if stage != "fit" or is_trial(trainer):
            return
        run_data(trainer)  # before the model loads
        if not any(isinstance(logger, MetricsFile) for logger in trainer.loggers):
            trainer.loggers = [MetricsFile(trainer.default_root_dir), *trainer.loggers]
        if RunFolder.of(trainer).last_checkpoint.exists():
            read_columns(RunFolder.of(trainer).metrics)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note the position; the trainer's own is set later, after all of its hooks."""
        self._resumed_from = checkpoint["global_step"]

    @rank_zero_only
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Have the figures on the disk first: a power cut shall not leave the checkpoint alone."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.sync()

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hand the record to every logger, and take up the figures.

        A run that has no step left starts no training, and still has what it logged to send.
        """
        data, folder = run_data(trainer), RunFolder.of(trainer)
        record: dict[str, Any] = {
            "config": folder.read_config(),
            "data": data.describe_data(),
            "template_sha256": hash_template(data.tokenizer),
            "git_commit": read_git_commit(),
        }
        for logger in trainer.loggers:
            logger.log_hyperparams(record)
        if self._resumed_from == 0:
            return
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.resume_from(self._resumed_from)
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):
                logger.catch_up(folder.metrics)

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Put on record that training begins here; the number of steps is known now."""
        if is_trial(trainer):
            return
        self._has_begun = True
        device = pl_module.device
        record = {
            "step": trainer.global_step,
            "total_steps": pl_module.total_steps(),
            "steps_per_epoch": trainer.num_training_batches,
            "device": None if device.type == "cpu" else describe_device(device).name,
            "ranks": trainer.world_size,
            "git_commit": read_git_commit(),
            "data": run_data(trainer).describe_data(),
        }
        begin_session(RunFolder.of(trainer).sessions, record)

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Put on record that it has ended, evaluations and all."""
        self._end(trainer, "finished")

    @rank_zero_only
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Put on record what has ended it."""
        text = " ".join(str(exception).split()) or type(exception).__name__
        self._end(trainer, text[:MOST_TOLD])

    def _end(self, trainer: pl.Trainer, how: str) -> None:
        if self._has_begun:
            self._has_begun = False
            with suppress(OSError):  # where the disk is full, what has ended the run says so
                end_session(RunFolder.of(trainer).sessions, trainer.global_step, how)


def read_git_commit() -> str | None:
    """Return the commit of the working directory, or None outside a repository."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None
