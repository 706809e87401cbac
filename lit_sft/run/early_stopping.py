"""Lightning's callbacks that monitor a figure which is measured in a rhythm of its own."""

from collections.abc import Iterable, Sequence

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities import rank_zero_info

from lit_sft.errors import require

GRADED = (["val", "exact_match"], ["val", "f1"])
"""Figures, of all rows or of a source, that depend on how a task grades."""


def require_same_rhythm(trainer: pl.Trainer, names: Iterable[str], every_n_steps: int) -> None:
    """Raise `InputError` if weights would be kept under a figure that other weights measured.

    Args:
        trainer: With its callbacks.
        names: Of figures.
        every_n_steps: Optimizer steps from one time they are measured to the next.
    """
    known = set(names)
    for callback in getattr(trainer, "callbacks", []):
        if isinstance(callback, ModelCheckpoint) and callback.monitor in known:
            steps = callback._every_n_train_steps
            require(
                steps % every_n_steps == 0,
                f"ModelCheckpoint.every_n_train_steps={steps} would keep weights that are not "
                f"measured: {callback.monitor} is, at GenerationEval.every_n_steps={every_n_steps};"
                " set the first to a multiple of the second",
            )


def require_measured(trainer: pl.Trainer, names: Sequence[str]) -> None:
    """Raise `InputError` if what `GenerationEval` does not measure is waited for.

    Args:
        trainer: With its callbacks.
        names: Of its figures, such as `val/exact_match`.
    """
    for callback in getattr(trainer, "callbacks", []):
        if isinstance(callback, (EarlyStopping, ModelCheckpoint)):
            monitor = callback.monitor or ""
            require(
                monitor in names or monitor.split("/")[:2] not in GRADED,
                f"{type(callback).__name__}.monitor: {monitor} is not measured; the graders of "
                f"GenerationEval's task give {', '.join(names)}",
            )


class Stoppers:
    """The `EarlyStopping` callbacks that monitor some figures; they look when these are measured.

    By themselves they look after each validation or epoch, whatever else was measured when: at the
    same value again, which counts as no improvement, or not at all.

    Args:
        trainer: Whose callbacks they are.
        names: Of the figures.
    """

    def __init__(self, trainer: pl.Trainer, names: Iterable[str]) -> None:
        known, callbacks = set(names), getattr(trainer, "callbacks", [])
        self._stoppers = [
            x for x in callbacks if isinstance(x, EarlyStopping) and x.monitor in known
        ]
        for stopper in self._stoppers:
            for hook in ("on_validation_end", "on_train_epoch_end"):
                setattr(stopper, hook, _look_at_nothing)

    def look(self, trainer: pl.Trainer) -> None:
        """Compare what was just measured, and have the trainer stop where it is no better."""
        for stopper in self._stoppers:
            stopper._run_early_stopping_check(trainer)
            self._tell(trainer, stopper)

    def stop_again(self, trainer: pl.Trainer) -> None:
        """End a resumed run that was cut off after it had been stopped."""
        for stopper in self._stoppers:
            if stopper.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:
                trainer.should_stop = True
                self._tell(trainer, stopper)

    def _tell(self, trainer: pl.Trainer, stopper: EarlyStopping) -> None:
        if trainer.should_stop and stopper.stopping_reason_message:
            reason = stopper.stopping_reason_message.removesuffix(" Signaling Trainer to stop.")
            rank_zero_info(f"stopped early after step {trainer.global_step}: {reason}")


def _look_at_nothing(*args: object) -> None:
    """Stand in for a hook of Lightning's."""
