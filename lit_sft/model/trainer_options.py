"""Options of Lightning's trainer that a run of windows cannot honour: refused, never ignored."""

from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lit_sft.errors import require
from lit_sft.model.device import describe_device, require_precision, tell_if_emulated

if TYPE_CHECKING:
    from jsonargparse import Namespace

NOTHING = "leaves nothing to train; set it above 0 (lit-sft validate evaluates without training)"


def require_known_options(options: "Namespace") -> None:
    """Raise `InputError` for what only a config asks for: a `Trainer` of one's own may have it.

    Args:
        options: Those of the trainer, by name.
    """
    require(
        options.accumulate_grad_batches == 1
        and not options.gradient_clip_val
        and options.gradient_clip_algorithm in (None, "norm"),
        "trainer.accumulate_grad_batches, gradient_clip_val and gradient_clip_algorithm cannot be "
        "set; use data.accumulate_grad_batches and model.max_grad_norm, which clips by norm",
    )
    require(
        not options.barebones,
        "trainer.barebones cannot be set: it takes away the checkpoints and the figures that every "
        "run has; to try a config out, use trainer.fast_dev_run",
    )
    require(
        options.enable_checkpointing is not False,
        "trainer.enable_checkpointing cannot be false: an interrupted run goes on from its "
        "checkpoint; checkpoint.every_n_steps makes them rarer",
    )
    require(
        options.log_every_n_steps in (None, 1),
        f"trainer.log_every_n_steps must be 1, got {options.log_every_n_steps}: each optimizer "
        "step is a row of logs/metrics.csv",
    )
    require(
        not options.model_registry,
        "trainer.model_registry cannot be set; append lit_sft.HubUpload to trainer.callbacks",
    )


def require_honoured(trainer: pl.Trainer, stage: str) -> None:
    """Raise `InputError` if a trainer is not one that windows can be run by.

    Args:
        trainer: With its data set up.
        stage: As Lightning calls it.
    """
    strategy = trainer.strategy
    require_precision(trainer.precision, describe_device(strategy.root_device))
    tell_if_emulated(trainer.precision, strategy.root_device)
    require(
        isinstance(strategy, SingleDeviceStrategy | DDPStrategy),
        f"trainer.strategy must be auto or ddp, got {type(strategy).__name__}",
    )
    if stage == "fit":
        require_limits(trainer)  # type: ignore[arg-type]  # it has the same names
        require_a_validation(trainer)


def require_limits(options: "Namespace") -> None:
    """Raise `InputError` if a run would train nothing, or not the rows that were meant.

    Args:
        options: Those of the trainer by name, or the `Trainer` itself.
    """
    require(
        not options.overfit_batches,
        f"trainer.overfit_batches={options.overfit_batches} cannot be set: a window is drawn anew "
        "in each epoch; to overfit, train on a file of a few rows (lit_sft.ChatFile) for many "
        "epochs; trainer.limit_train_batches shortens an epoch",
    )
    for name in ("limit_train_batches", "max_steps", "max_epochs"):
        require(getattr(options, name) != 0, f"trainer.{name}=0 {NOTHING}")


def require_a_validation(trainer: pl.Trainer) -> None:
    """Raise `InputError` if validation is to come after more windows than an epoch has.

    Args:
        trainer: In `fit`, with its data set up.
    """
    interval, data = trainer.val_check_interval, trainer.datamodule  # type: ignore[attr-defined]
    counts_steps = isinstance(interval, int) and trainer.check_val_every_n_epoch is not None
    if not counts_steps or not trainer.limit_val_batches or not hasattr(data, "describe_run"):
        return
    steps, limit = len(data.train_dataloader()), trainer.limit_train_batches
    steps = min(int(steps * limit) if isinstance(limit, float) else limit, steps)
    require(
        interval <= steps,
        f"trainer.val_check_interval={interval} is more than the {steps} steps of an epoch; lower "
        "it, count over epochs (trainer.check_val_every_n_epoch: null), or do without validation "
        "(trainer.limit_val_batches: 0)",
    )
