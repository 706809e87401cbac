"""`trainer.strategy: fsdp2`: ranks that train one adapter on a base that they share."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from lit_sft.model.distributed import take_from_first

FSDP2 = "fsdp2"
"""As `trainer.strategy`, a checkpoint and a line call it."""


class ShardedStrategy(DDPStrategy):
    """Ranks as `ddp` starts them, each of which holds a share of the frozen base.

    What is trained is whole on every rank, and its gradient is summed once a window, as with `ddp`:
    so a checkpoint, its optimizer and the adapter's folder are those of any strategy.

    Args:
        shards: Whether the base is shared out. None leaves it to the memory of the devices, once
            they are known: where it fits each of them whole, this is `ddp`.
        options: Of Lightning's `DDPStrategy`.
    """

    def __init__(self, shards: bool | None = True, **options: Any) -> None:
        super().__init__(**options)
        self.shards = shards
        self.earlier: str | None = None
        """How the run that goes on held its base on several devices, `ddp` or `fsdp2`."""

    @override
    def setup(self, trainer: pl.Trainer) -> None:
        """Make the optimizer; the adapter is the first rank's, and shares stay where they are."""
        if not self.shards:
            super().setup(trainer)
            return
        if self.accelerator is None or self.model is None:
            raise RuntimeError("a strategy is set up by a trainer that has been given a model")
        self.accelerator.setup(trainer)
        self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        if trainer.state.fn == TrainerFn.FITTING:
            take_from_first(p for p in self.model.parameters() if p.requires_grad)
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
