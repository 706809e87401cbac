"""Early stopping by a figure that is measured in a rhythm of its own."""

from collections.abc import Iterable

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities import rank_zero_info


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
