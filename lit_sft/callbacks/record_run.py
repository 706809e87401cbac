"""Tell the loggers what they would otherwise not know of a run."""

import subprocess
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.utilities import rank_zero_only

from lit_sft.data.tokenizer import hash_template
from lit_sft.tracking.metrics_file import METRICS, MetricsFile
from lit_sft.tracking.wandb_run import WandbRun


class RecordRun(pl.Callback):
    """Log the resolved config, the data's ledger, the template's hash and the git commit.

    On a resumed run, the metrics file goes on behind the step that the run resumes from, and W&B is
    sent what it lacks of the rows before.
    """

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hand the record to every logger."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        config = Path(trainer.default_root_dir) / "config.yaml"
        record: dict[str, Any] = {
            "config": yaml.safe_load(config.read_text()) if config.is_file() else {},
            "data": {split: ledger.as_dict() for split, ledger in data.ledgers.items()},
            "template_sha256": hash_template(data.tokenizer),
            "git_commit": read_git_commit(),
        }
        for logger in trainer.loggers:
            logger.log_hyperparams(record)

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take up the figures; the position of a resumed run is known only now."""
        if trainer.global_step == 0:
            return
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.resume_from(trainer.global_step)
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
