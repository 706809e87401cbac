"""Leave the trained adapter where other tools look for it."""

from pathlib import Path

import lightning.pytorch as pl
import yaml
from lightning.pytorch.utilities import rank_zero_only

from lit_sft.data.tokenizer import hash_template
from lit_sft.export.adapter import save_adapter
from lit_sft.export.model_card import ModelCard

ADAPTER = "adapter"
"""Under the run's folder."""
TIMINGS = ("second", "gib")


class SaveAdapter(pl.Callback):
    """Write the folder `adapter` under the run's folder when training ends."""

    @rank_zero_only
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it."""
        root = Path(trainer.default_root_dir)
        tokenizer = trainer.datamodule.tokenizer
        config = root / "config.yaml"
        card = ModelCard(
            base_model=pl_module.base_model,
            dataset=getattr(trainer.datamodule.task, "path", type(trainer.datamodule.task).__name__),
            template_sha256=hash_template(tokenizer),
            metrics={
                name: value.item()
                for name, value in trainer.callback_metrics.items()
                if name.startswith(("train/", "val/")) and not name.endswith(TIMINGS)
            },
            steps=trainer.global_step,
            config=yaml.safe_load(config.read_text()) if config.is_file() else {},
        )
        save_adapter(root / ADAPTER, pl_module.model, tokenizer, card)
