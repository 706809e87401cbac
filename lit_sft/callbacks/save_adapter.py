"""Leave the trained adapter where other tools look for it."""

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

from lit_sft.data.protocol import run_data
from lit_sft.data.tokenizer import hash_template
from lit_sft.export.adapter_folder import ModelCard, save_adapter
from lit_sft.model.base_model import fingerprint_base
from lit_sft.model.module import SFTModule
from lit_sft.run.folder import RunFolder, is_trial
from lit_sft.run.metrics_file import MetricsFile


class SaveAdapter(pl.Callback):
    """Write the folder `adapter` under the run's folder when training ends."""

    def __init__(self) -> None:
        self._is_written = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Write it while signals wait; they end the process from here on."""
        self._write(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Write it for a run that had no step left, and so has neither begun nor ended training.

        Such a run may have been cut off between its last checkpoint and its adapter.
        """
        if not self._is_written:
            self._write(trainer, pl_module)

    @rank_zero_only
    def _write(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        if is_trial(trainer):
            return
        folder, data = RunFolder.of(trainer), run_data(trainer)
        source = getattr(data, "task", data)
        card = ModelCard(
            base_model=pl_module.base_model,
            dataset=getattr(source, "path", type(source).__name__),
            base_sha256=fingerprint_base(pl_module.model),
            template_sha256=hash_template(data.tokenizer),
            metrics={
                name: value
                for name, value in _last_figures(trainer).items()
                if name == "train/loss" or (name.startswith("val/") and "seconds" not in name)
            },
            steps=trainer.global_step,
            config=folder.read_config(),
        )
        save_adapter(folder.adapter, pl_module.model, data.tokenizer, card)
        self._is_written = True


def _last_figures(trainer: pl.Trainer) -> dict[str, float]:
    """Return the last value of each metric; the trainer forgets those before it was resumed."""
    figures = {name: value.item() for name, value in trainer.callback_metrics.items()}
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile):
            figures |= logger.last_figures()
    return figures
