"""What becomes of an optimizer step whose loss or gradient is NaN or infinite."""

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_sft.errors import NonFiniteError

MOST_IN_A_ROW = 5
"""A row may be bad, and two; so many steps in a row are a run that has come apart."""


class NonFiniteSteps:
    """Stops a run at such a step, or counts it as skipped. A checkpoint holds the counts.

    Args:
        policy: `stop` raises at the first; `skip` only at the `MOST_IN_A_ROW`-th in a row.
    """

    def __init__(self, policy: Literal["stop", "skip"]) -> None:
        self.policy = policy
        self.skipped = self.in_a_row = 0
        self._accepted = True

    def state_dict(self) -> dict[str, int]:
        """Return the counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take up the counts of an interrupted run."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]

    def accept(
        self,
        trainer: pl.Trainer,
        batch_idx: int,
        loss: Tensor,
        grad_norm: Tensor,
        supervised: Tensor,
    ) -> bool:
        """Return whether the optimizer may take a step; it is the one wait for the device in it.

        Args:
            trainer: Whose data module can name rows, or cannot.
            batch_idx: The number of the step's window within its epoch.
            loss: float32 of shape `[]`, over the window, the same on all ranks.
            grad_norm: Likewise, before clipping.
            supervised: The tokens of the window that carry loss, likewise. A stream may have left
                out all of its rows; then there is nothing to update by.

        Raises:
            NonFiniteError: If the run has to stop.
        """
        is_good = torch.isfinite(loss + grad_norm) & (supervised > 0)
        self._accepted = bool(is_good.item())
        if self._accepted:
            self.in_a_row = 0
        if self._accepted or not supervised.item():
            return self._accepted
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        what = (
            f"optimizer step {trainer.global_step}: loss {loss.item()}, gradient norm "
            f"{grad_norm.item()}, on {_name_rows(trainer, batch_idx)} (counted from 0)"
        )
        self._require_few(what)
        rank_zero_info(f"{what}: skipped")
        return False

    def figures(self, loss: Tensor, grad_norm: Tensor) -> dict[str, Tensor | float]:
        """Return what to log of the step: its loss, or how many were skipped; shapes are `[]`."""
        if self._accepted:
            return {"train/loss": loss, "train/grad_norm": grad_norm}
        return {"train/skipped_steps": float(self.skipped)} if self.in_a_row else {}

    def _require_few(self, what: str) -> None:
        """Raise `NonFiniteError` if the run may not skip a step, told in `what`."""
        if self.policy == "stop":
            raise NonFiniteError(
                f"{what}. The run stopped before the update, and its last checkpoint is good: look "
                "at these rows; then go on from it with a lower learning rate, or with "
                "--model.nonfinite skip"
            )
        if self.in_a_row == MOST_IN_A_ROW:
            raise NonFiniteError(
                f"{what}. It is the {self.in_a_row}th such step in a row, and not skipped any "
                "more: go on from its last checkpoint with a lower learning rate"
            )


def _name_rows(trainer: pl.Trainer, batch_idx: int) -> str:
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "name_rows"):
        return "unknown rows"
    return ", ".join(data.name_rows(trainer.current_epoch, batch_idx))


def require_finite_weights(weights: dict[str, Tensor], step: int) -> None:
    """Raise `NonFiniteError` if an update has overflowed: a checkpoint is good or is not written.

    Args:
        weights: By name, of any shape.
        step: Optimizer steps taken.
    """
    poisoned = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if poisoned:
        raise NonFiniteError(
            f"after optimizer step {step}, {len(poisoned)} trained tensors are not finite, such as "
            f"{poisoned[0]}. They are not saved, and the last checkpoint is good: go on from it "
            "with a lower learning rate"
        )
