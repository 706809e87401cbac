"""Options of Lightning's trainer that a run of windows cannot honour: refused, never ignored."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.callbacks.spike import SpikeDetection

from lit_sft.errors import InputError, require
from lit_sft.model.device import describe_device, require_precision, tell_if_emulated
from lit_sft.model.known_strategies import require_known_name, require_known_strategy

if TYPE_CHECKING:
    from jsonargparse import Namespace

REFUSED_CALLBACKS: dict[type[pl.Callback], str] = {
    BaseFinetuning: "the base is frozen, and model.lora.target_modules says what is trained",
    BatchSizeFinder: "the gradient is the same under any data.max_tokens_per_pass, and "
    "GradientCheckpointing measures the free memory",
    GradientAccumulationScheduler: "use data.accumulate_grad_batches",
    LearningRateFinder: "each step sets its learning rate anew, from model.learning_rate",
    ModelPruning: "the weights of the base are frozen, and quantised",
    SpikeDetection: "a training step hands out no loss; model.nonfinite stops or skips bad steps",
    StochasticWeightAveraging: "the schedule is a cosine, and its average would copy the base",
    WeightAveraging: "it copies the frozen base, into every checkpoint too",
}
"""Lightning's own that a step which is a whole window cannot honour, and why."""
FIGURES = ("train/", "val/")
"""How the names of all figures begin that a training run has."""
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
    require_known_name(options.strategy)
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
    require_known_strategy(trainer)
    if stage == "fit":
        require_known_trainer(trainer)


def require_limits(options: "Namespace | pl.Trainer") -> None:
    """Raise `InputError` if a run would train nothing, or not the rows that were meant.

    Args:
        options: Those of the trainer by name, or the `Trainer` itself.
    """
    overfitted = getattr(options, "overfit_batches", 0)
    require(
        not overfitted,
        f"trainer.overfit_batches={overfitted} cannot be set: a window is drawn anew "
        "in each epoch; to overfit, train on a file of a few rows (lit_sft.ChatFile) for many "
        "epochs; trainer.limit_train_batches shortens an epoch",
    )
    require(
        not (options.max_steps == -1 and options.max_epochs == -1),
        "a cosine schedule needs an end: set trainer.max_steps or max_epochs",
    )
    require(
        getattr(options, "val_check_interval", None) != 0,
        "trainer.val_check_interval=0 is no interval; do without validation by "
        "trainer.limit_val_batches=0",
    )
    for name in ("limit_train_batches", "max_steps", "max_epochs"):
        require(getattr(options, name) != 0, f"trainer.{name}=0 {NOTHING}")


def require_a_validation(trainer: pl.Trainer) -> None:
    """Raise `InputError` if validation is to come after more windows than an epoch has.

    Args:
        trainer: In `fit`, with its data set up.
    """
    interval = getattr(trainer, "val_check_interval", None)
    data: Any = getattr(trainer, "datamodule", None)
    if not isinstance(interval, int) or trainer.check_val_every_n_epoch is None:
        return
    if not trainer.limit_val_batches or not hasattr(data, "describe_run"):
        return
    steps, limit = len(data.train_dataloader()), trainer.limit_train_batches
    steps = min(int(steps * limit) if isinstance(limit, float) else limit, steps)
    require(
        interval <= steps,
        f"trainer.val_check_interval={interval} is more than the {steps} steps of an epoch; lower "
        "it, count over epochs (trainer.check_val_every_n_epoch: null), or do without validation "
        "(trainer.limit_val_batches: 0)",
    )


def require_known_callbacks(callbacks: Iterable[pl.Callback]) -> None:
    """Raise `InputError` for a callback of Lightning that a run of windows cannot honour."""
    for callback in callbacks:
        for kind, reason in REFUSED_CALLBACKS.items():
            if isinstance(callback, kind):
                name = type(callback).__name__
                raise InputError(f"trainer.callbacks: {name} cannot be used: {reason}")


def require_known_monitors(trainer: pl.Trainer) -> None:
    """Raise `InputError` for a monitored figure that no run has, before it trains for nothing.

    A figure whose name is right may come later, such as `val/loss` with the first validation; to
    `EarlyStopping` that is no error then. Callbacks of one's own may log under any name.
    """
    callbacks: list[pl.Callback] = getattr(trainer, "callbacks", [])
    known = ("lightning.", "lit_sft.")
    if not all(type(callback).__module__.startswith(known) for callback in callbacks):
        return
    for callback in callbacks:
        monitor = callback.monitor if isinstance(callback, (EarlyStopping, ModelCheckpoint)) else ""
        if monitor and not monitor.startswith(FIGURES):
            raise InputError(
                f"{type(callback).__name__}.monitor: no figure is named {monitor!r}; there are "
                "train/loss, val/loss, with GenerationEval val/exact_match or val/f1, and the "
                "other columns of logs/metrics.csv"
            )
        if isinstance(callback, EarlyStopping):
            require(
                monitor != "val/loss" or trainer.limit_val_batches != 0,
                "EarlyStopping.monitor: there is no val/loss without validation; raise "
                "trainer.limit_val_batches",
            )
            callback.strict = False


def require_known_trainer(trainer: pl.Trainer) -> None:
    """Raise `InputError` for what a trainer of one's own cannot honour either.

    Args:
        trainer: In `fit`, with its data set up.
    """
    require_limits(trainer)
    require_a_validation(trainer)
    require_known_callbacks(getattr(trainer, "callbacks", []))
    require_known_monitors(trainer)
    require(
        trainer.world_size == 1 or not _shares_out(trainer),
        "trainer.use_distributed_sampler must be false: SFTDataModule shares out the windows",
    )


def _shares_out(trainer: pl.Trainer) -> bool:
    """Return whether Lightning would replace a loader's sampler by one of its own."""
    return trainer._accelerator_connector.use_distributed_sampler
