"""Leave the trained adapter where other tools look for it."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.utilities import rank_zero_only

from lit_sft.data.tokenizer import hash_template
from lit_sft.export.adapter_folder import ADAPTER, save_adapter
from lit_sft.export.model_card import ModelCard
from lit_sft.model.base_model import fingerprint_base
from lit_sft.run.metrics_file import MetricsFile


class SaveAdapter(pl.Callback):
    """Write the folder `adapter` under the run's folder when training ends."""

    def __init__(self) -> None:
        self._is_written = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write it while signals wait; they end the process from here on."""
        self._write(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write it for a run that had no step left, and so has neither begun nor ended training.

        Such a run may have been cut off between its last checkpoint and its adapter.
        """
        if not self._is_written:
            self._write(trainer, pl_module)

    @rank_zero_only
    def _write(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        root = Path(trainer.default_root_dir)
        data = trainer.datamodule  # type: ignore[attr-defined]
        config = root / "config.yaml"
        card = ModelCard(
            base_model=pl_module.base_model,
            dataset=getattr(data.task, "path", type(data.task).__name__),
            base_sha256=fingerprint_base(pl_module.model),
            template_sha256=hash_template(data.tokenizer),
            metrics={
                name: value
                for name, value in _last_figures(trainer).items()
                if name == "train/loss" or (name.startswith("val/") and "seconds" not in name)
            },
            steps=trainer.global_step,
            config=yaml.safe_load(config.read_text()) if config.is_file() else {},
        )
        save_adapter(root / ADAPTER, pl_module.model, data.tokenizer, card)
        self._is_written = True


def _last_figures(trainer: pl.Trainer) -> dict[str, float]:
    """Return the last value of each metric; the trainer forgets those before it was resumed."""
    figures = {name: value.item() for name, value in trainer.callback_metrics.items()}
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile):
            figures |= logger.last_figures()
    return figures
