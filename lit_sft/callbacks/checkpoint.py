"""The checkpoint that a killed run is resumed from."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from lit_sft.errors import require

LAST = Path("checkpoints") / "last.ckpt"
"""Under the run's folder."""


class LastCheckpoint(Checkpoint):
    """Keep `checkpoints/last.ckpt` under the run's folder: the one to resume from.

    A checkpoint stands between two optimizer steps, after all that was due at the earlier one: a
    validation that follows a step is done before the step is saved, so that a resumed run neither
    repeats nor misses one. Lightning's `ModelCheckpoint` beside it keeps the best by a metric.

    Args:
        every_n_steps: Optimizer steps between two checkpoints, besides those after each validation
            and at the end.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        require(every_n_steps > 0, f"checkpoint.every_n_steps must be positive: {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._saved_at = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Save between validations, and at the last step, from where a longer run can go on."""
        step = trainer.global_step
        is_due = step % self.every_n_steps == 0 or step == pl_module.total_steps()
        if is_due and not _validation_follows(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after a validation inside training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save a run that ended early, such as by `trainer.max_time`."""
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.fast_dev_run or trainer.global_step == self._saved_at:  # type: ignore[attr-defined]
            return
        self._saved_at = trainer.global_step
        trainer.save_checkpoint(Path(trainer.default_root_dir) / LAST)


def _validation_follows(trainer: pl.Trainer) -> bool:
    """Ask Lightning's own rule, so that the two cannot disagree."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
