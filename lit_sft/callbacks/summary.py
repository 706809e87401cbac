"""What a run says before it starts and when it is done."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

WRITTEN = (
    "adapter",
    "checkpoints/last.ckpt",
    "logs/metrics.csv",
    "logs/generations.jsonl",
    "config.yaml",
)


class Summary(pl.Callback):
    """Print one line on what is trained, and at the end the last figures and what was written."""

    @rank_zero_only
    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Print what is loaded: with a large base, the next half minute is silent."""
        print(f"loading {pl_module.base_model} ({pl_module.quantization.format})", flush=True)

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print how much is frozen and how much is trained."""
        trained = sum(p.numel() for p in pl_module.trained_parameters.values())
        frozen = pl_module.model.get_base_model().num_parameters() - trained
        print(
            f"training {trained:,} parameters of a LoRA adapter; the base's {frozen:,} are frozen",
            flush=True,
        )

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print the last figures, and where the results are."""
        root = Path(trainer.default_root_dir)
        metrics = trainer.callback_metrics
        for name in ("train/loss", "val/loss", "val/exact_match"):
            if name in metrics:
                print(f"{name:<18}{metrics[name].item():.4f}")
        print("\n".join(f"wrote {root / path}" for path in WRITTEN if (root / path).exists()))
