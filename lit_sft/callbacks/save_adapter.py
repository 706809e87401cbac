"""Leave the trained adapter where other tools look for it."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.utilities import rank_zero_only

from lit_sft.data.tokenizer import hash_template
from lit_sft.export.adapter import ADAPTER, save_adapter
from lit_sft.export.model_card import ModelCard
from lit_sft.model.adapter import fingerprint_base


class SaveAdapter(pl.Callback):
    """Write the folder `adapter` under the run's folder when training ends."""

    @rank_zero_only
    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write it."""
        root = Path(trainer.default_root_dir)
        data = trainer.datamodule  # type: ignore[attr-defined]
        config = root / "config.yaml"
        card = ModelCard(
            base_model=pl_module.base_model,
            dataset=getattr(data.task, "path", type(data.task).__name__),
            base_sha256=fingerprint_base(pl_module.model),
            template_sha256=hash_template(data.tokenizer),
            metrics={
                name: value.item()
                for name, value in trainer.callback_metrics.items()
                if name == "train/loss" or (name.startswith("val/") and "seconds" not in name)
            },
            steps=trainer.global_step,
            config=yaml.safe_load(config.read_text()) if config.is_file() else {},
        )
        save_adapter(root / ADAPTER, pl_module.model, data.tokenizer, card)
