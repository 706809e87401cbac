"""`lit-sft fit --dry_run`: tell what a run will take, and leave nothing behind."""

import lightning.pytorch as pl

from lit_sft.callbacks.generation_eval import GenerationEval
from lit_sft.data.datamodule import SFTDataModule
from lit_sft.errors import require
from lit_sft.model.base_model import outline
from lit_sft.model.device import compute_dtype
from lit_sft.model.module import SFTModule
from lit_sft.model.sharded.choice import is_to_shard
from lit_sft.model.stored_base import measure_base
from lit_sft.plan.estimate import make_plan
from lit_sft.plan.outlined_job import UnknownPassError
from lit_sft.plan.plan_text import describe_base, describe_plan


def tell_plan(
    trainer: pl.Trainer, module: SFTModule, data: SFTDataModule, measured: bool = False
) -> None:
    """Print what a run would take in memory and in time.

    Args:
        trainer: As it would fit.
        module: What it would fit.
        data: On what.
        measured: Whether the weights are loaded, and three steps taken of the longest rows.

    Raises:
        InputError: As the run would, before its weights are loaded.
    """
    module.trainer = trainer  # whose devices decide, and it is said, where the strategy is open
    require(
        not is_to_shard(module) or not measured,
        "--dry_run measure takes its steps on one device, and trainer.strategy fsdp2 shares the "
        "base out over several; plan it by --dry_run",
    )
    attach(trainer, module, data)
    dtype = compute_dtype(str(trainer.precision))
    layers = outline(module.base_model, module.base_config)
    print(describe_base(measure_base(layers, module.quantization, dtype), dtype), flush=True)
    try:
        print(describe_plan(make_plan(trainer, module, data, measured)), flush=True)
    except UnknownPassError as error:
        print(f"the rest is not known: {error}; a few steps tell it (trainer.max_steps)")


def attach(trainer: pl.Trainer, module: SFTModule, data: SFTDataModule) -> None:
    """Introduce the three as `Trainer.fit` does, load the rows, and see what is wrong with them.

    Callbacks that reach the Hub, and loggers, are not asked.
    """
    trainer.strategy.connect(module)
    module.trainer = data.trainer = trainer
    trainer.datamodule = data  # type: ignore[attr-defined]
    data.prepare_data()
    data.setup("fit")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GenerationEval):
            callback.setup(trainer, module, "fit")
    module.setup("fit")
