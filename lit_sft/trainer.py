"""What a run has, from the command line and in a library: `make_trainer` and `run_callbacks`."""

import inspect
import os
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_sft.callbacks.checkpoint import LastCheckpoint
from lit_sft.callbacks.console import Summary
from lit_sft.callbacks.memory_advice import MemoryAdvice
from lit_sft.callbacks.progress import Progress
from lit_sft.callbacks.record_run import RecordRun
from lit_sft.callbacks.record_test import RecordTest
from lit_sft.callbacks.save_adapter import SaveAdapter
from lit_sft.callbacks.write_predictions import WritePredictions
from lit_sft.errors import InputError
from lit_sft.model.device import (
    choose_precision,
    count_devices,
    describe_device,
    find_device,
    require_precision,
)
from lit_sft.model.known_strategies import require_known_strategy, require_room_for
from lit_sft.model.sharded.strategy import FSDP2, ShardedStrategy
from lit_sft.model.trainer_options import require_known_callbacks, require_known_options
from lit_sft.ranks import place, read_launch
from lit_sft.run.tensorboard_run import TensorBoardRun
from lit_sft.run.wandb_run import WandbRun

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
TRAINER_DEFAULTS = {
    "default_root_dir": "runs/latest",
    "deterministic": True,  # two runs, and a resumed one, give the same bits on a GPU, too
    "logger": False,  # `logs/metrics.csv` is always written; this adds others
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "enable_checkpointing": True,
    "use_distributed_sampler": False,  # windows are shared out by SFTDataModule
}


def make_trainer(
    every_n_steps: int = 50, grace_seconds: float = 20.0, **options: Any
) -> pl.Trainer:
    """Return a trainer whose runs survive: the very one that `lit-sft fit` trains with.

    A run leaves checkpoints, `logs/metrics.csv` and the adapter's folder in `default_root_dir`, and
    holds that folder meanwhile. Go on with one by
    `trainer.fit(module, data, ckpt_path=lit_sft.last_checkpoint(root))`.

    Args:
        every_n_steps: Optimizer steps between two checkpoints, see `LastCheckpoint`.
        grace_seconds: Likewise.
        options: Of `lightning.Trainer`. Without `precision`, what the device computes natively is
            taken; without `max_steps` and `max_epochs`, there is one epoch. `callbacks` are added
            to those of every run, and loggers to `logs/metrics.csv`.

    Raises:
        InputError: If an option cannot be honoured.
        TypeError: If there is no option of that name.
    """
    defaults = {name: x.default for name, x in inspect.signature(pl.Trainer).parameters.items()}
    if unknown := sorted(options.keys() - defaults.keys()):
        raise TypeError(f"make_trainer: lightning.Trainer has no option {', '.join(unknown)}")
    given = SimpleNamespace(**(defaults | TRAINER_DEFAULTS | options))
    settle_options(given)
    own = run_callbacks(every_n_steps, grace_seconds)
    return build_trainer(**(vars(given) | {"callbacks": [*_as_list(given.callbacks), *own]}))


def run_callbacks(every_n_steps: int = 50, grace_seconds: float = 20.0) -> list[pl.Callback]:
    """Return the callbacks of every run, for a `lightning.Trainer` of one's own.

    With them alone it survives a kill, keeps its figures, says what it does, and leaves an adapter.

    Args:
        every_n_steps: Optimizer steps between two checkpoints, see `LastCheckpoint`.
        grace_seconds: Likewise.
    """
    return [*report_callbacks(), LastCheckpoint(every_n_steps, grace_seconds)]


def report_callbacks() -> list[pl.Callback]:
    """Return those that say and keep what a run does; its checkpoints are `LastCheckpoint`'s."""
    kept = [RecordRun(), RecordTest(), SaveAdapter(), WritePredictions()]
    return [Progress(), MemoryAdvice(), *kept, Summary()]


def settle_options(options: Any) -> None:
    """Decide what a trainer's options leave open, and refuse what a run cannot honour.

    Args:
        options: All of them, as attributes by name; they are changed in place.

    Raises:
        InputError: If an option cannot be honoured.
    """
    options.precision = _resolve_precision(options.precision, options.accelerator)
    if options.max_epochs is None and options.max_steps == -1:
        options.max_epochs = 1  # a schedule needs an end; who sets one limit has set both
    require_known_options(options)


def build_trainer(**options: Any) -> pl.Trainer:
    """Return a `lightning.Trainer`, with what an option takes away or makes superfluous left out.

    Args:
        options: All of them, the callbacks of a run among them.

    Raises:
        InputError: If Lightning knows no such device, strategy or the like.
    """
    launch = read_launch(os.environ)
    options["devices"], options["num_nodes"] = place(
        options["devices"], options["num_nodes"], launch
    )
    callbacks = _as_list(options["callbacks"])
    require_known_callbacks(callbacks)
    bars = [x for x in callbacks if isinstance(x, ProgressBar) and not isinstance(x, Progress)]
    if bars or options["enable_progress_bar"] is False:
        callbacks = [x for x in callbacks if not isinstance(x, Progress)]
    # Before those of the user, some of which look for a logger: it opens the file of figures.
    callbacks.sort(key=lambda callback: not isinstance(callback, RecordRun))
    loggers: list[Logger] = _as_list(options["logger"])
    for logger in loggers:
        if isinstance(logger, (WandbRun, TensorBoardRun)):
            logger.keep_in(options["default_root_dir"])
    workspace = os.environ.get(WORKSPACE)
    own = {"callbacks": callbacks, "logger": loggers, "strategy": _choose_strategy(options)}
    try:
        trainer = pl.Trainer(**(options | own))
    except (ValueError, ImportError) as error:  # such as a strategy that the accelerator has not
        raise InputError(f"trainer: {' '.join(str(error).split())}") from error
    require_known_strategy(trainer)
    if workspace:  # Lightning has set its own, before anything has asked for the device
        os.environ[WORKSPACE] = workspace
    return trainer


def _choose_strategy(options: Mapping[str, Any]) -> Any:
    """Return this package's strategy where it is asked for, or left open with several devices.

    Raises:
        InputError: If the devices that are asked for cannot be had, or would be ignored.
    """
    asked = options["strategy"]
    ranks = count_devices(options["accelerator"], options["devices"]) * options["num_nodes"]
    require_room_for(asked, ranks)
    if asked == FSDP2:
        return ShardedStrategy()
    return asked if asked != "auto" or ranks == 1 else ShardedStrategy(shards=None)


def _resolve_precision(asked: str | int | None, accelerator: Any) -> str:
    """Return the precision of a run, and say it where it was left open."""
    device = describe_device(find_device(accelerator))
    if asked not in (None, "auto"):
        return require_precision(asked, device)
    precision, reason = choose_precision(device)
    rank_zero_only(print)(f"precision {precision}: {reason}", flush=True)
    return precision


def _as_list(value: Any) -> list[Any]:
    if value in (None, False, True):
        return []
    return list(value) if isinstance(value, Iterable) else [value]
