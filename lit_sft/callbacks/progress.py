"""One progress bar, or, where nobody watches a terminal, one line now and then."""

import sys
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar

SHOWN = {
    "train/loss": ("loss", ".4f"),
    "train/learning_rate": ("lr", ".2e"),
    "train/tokens_per_second": ("tokens/s", ",.0f"),
    "val/loss": ("val_loss", ".4f"),
    "val/exact_match": ("exact_match", ".3f"),
}
LINES = 10
"""How many lines a training run prints where there is no terminal."""


class Progress(RichProgressBar):
    """A bar in a terminal; elsewhere, such as in a log file, a line every tenth of the run."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=4)
        self.is_terminal = sys.stdout.isatty()
        if not self.is_terminal:
            self.disable()

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return the figures worth watching, under short names and ready to print."""
        metrics = trainer.callback_metrics
        return {
            label: format(metrics[name].item(), spec)
            for name, (label, spec) in SHOWN.items()
            if name in metrics
        }

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Move the bar, or print a line."""
        super().on_train_batch_end(trainer, pl_module, *args)
        if self.is_terminal or not trainer.is_global_zero:
            return
        step, total = trainer.global_step, pl_module.total_steps()
        if step % max(1, total // LINES) == 0 or step == total:
            shown = self.get_metrics(trainer, pl_module).items()
            figures = "  ".join(f"{label} {value}" for label, value in shown)
            print(f"step {step:,}/{total:,}  {figures}", flush=True)
