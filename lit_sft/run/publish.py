"""Hand figures on at once, so that a checkpoint never stands before what led to it is on record."""

from collections.abc import Mapping

import lightning.pytorch as pl
import torch
from torch import Tensor


def publish(trainer: pl.Trainer, metrics: Mapping[str, float | Tensor]) -> None:
    """Give figures to callbacks and loggers, under the number of optimizer steps taken.

    `LightningModule.log` keeps what a step logs until the step's callbacks, which save checkpoints,
    are done: a run killed in between and resumed would lack the row.

    Args:
        trainer: In `fit`.
        metrics: Scalars by name.
    """
    values = {name: float(value) for name, value in metrics.items()}
    trainer.callback_metrics.update({name: torch.tensor(v) for name, v in values.items()})
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)
