"""Tell the loggers what they would otherwise not know of a run."""

import subprocess
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.utilities import rank_zero_only

from lit_sft.data.tokenizer import hash_template
from lit_sft.run.metrics_file import METRICS, MetricsFile, read_columns
from lit_sft.run.wandb_run import WandbRun


class RecordRun(pl.Callback):
    """Log the resolved config, the data's ledger, the template's hash and the git commit.

    On a resumed run, the metrics file goes on behind the step that the run resumes from, and W&B is
    sent what it lacks of the rows before.
    """

    def __init__(self) -> None:
        self._resumed_from = 0

    @rank_zero_only
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Look at the figures that a resumed run goes on with, before the model loads.

        Raises:
            InputError: If they cannot be read.
        """
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile) and trainer.ckpt_path:
                read_columns(logger.path)

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
        data = trainer.datamodule  # type: ignore[attr-defined]
        config = Path(trainer.default_root_dir) / "config.yaml"
        record: dict[str, Any] = {
            "config": yaml.safe_load(config.read_text()) if config.is_file() else {},
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
                logger.catch_up(Path(trainer.default_root_dir) / METRICS)


def read_git_commit() -> str | None:
    """Return the commit of the working directory, or None outside a repository."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None
