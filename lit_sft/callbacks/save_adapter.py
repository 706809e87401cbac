"""Leave the trained adapter where other tools look for it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only

from lit_sft.data.protocol import run_data
from lit_sft.data.tokenizer import hash_template
from lit_sft.export.adapter_folder import save_adapter
from lit_sft.export.card import ModelCard, choose_figures
from lit_sft.model.base_model import fingerprint_base
from lit_sft.model.module import SFTModule
from lit_sft.run.best_checkpoint import best_of_trainer, read_figures
from lit_sft.run.checkpoint_io import AtomicCheckpointIO
from lit_sft.run.folder import RunFolder, is_trial


class SaveAdapter(pl.Callback):
    """Write the folder `adapter` under the run's folder when training ends.

    It holds the best evaluated weights where a `ModelCheckpoint` monitors a figure, otherwise the
    last; the model keeps its own. `lit_sft.json` and the model card say which.
    """

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
        best, step = best_of_trainer(trainer), trainer.global_step
        state: Mapping[str, torch.Tensor] = {}
        if best and best.path != folder.last_checkpoint:
            checkpoint = AtomicCheckpointIO().load_checkpoint(best.path)
            state, step = checkpoint["state_dict"], checkpoint["global_step"]
        source = getattr(data, "task", data)
        card = ModelCard(
            base_model=pl_module.base_model,
            dataset=getattr(source, "path", type(source).__name__),
            base_sha256=fingerprint_base(pl_module.model),
            template_sha256=hash_template(data.tokenizer),
            metrics=choose_figures(_figures(trainer, folder, step)),
            steps=step,
            steps_taken=trainer.global_step,
            monitor=best.monitor if best else None,
            config=folder.read_config(),
        )
        with holding(pl_module, state):
            save_adapter(folder.adapter, pl_module.model, data.tokenizer, card)
        self._is_written = True
        if best:
            print(
                f"the adapter is that of step {step:,} of {trainer.global_step:,}, the best by "
                f"{best.monitor}: {best.value:.4f}",
                flush=True,
            )


@contextmanager
def holding(module: SFTModule, state: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Let a module have other weights for a while, and its own again afterwards.

    Args:
        module: Whose trained parameters are changed in place.
        state: As a checkpoint has them, by the parameters' names; those it lacks stay.
    """
    parameters = module.trained_parameters
    own = {name: parameters[name].detach().clone() for name in state}
    try:
        _put(parameters, state)
        yield
    finally:
        _put(parameters, own)


@torch.no_grad()
def _put(parameters: Mapping[str, torch.nn.Parameter], state: Mapping[str, torch.Tensor]) -> None:
    for name, weight in state.items():
        parameters[name].copy_(weight)


def _figures(trainer: pl.Trainer, folder: RunFolder, step: int) -> dict[str, float]:
    """Return the figures of the weights of a step; the trainer forgets those before a resumption.

    What no file keeps, a trainer with loggers of its own has for the last step alone.
    """
    kept = read_figures(folder, step)
    if step < trainer.global_step:
        return kept
    return {name: value.item() for name, value in trainer.callback_metrics.items()} | kept
