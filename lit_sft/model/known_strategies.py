"""The strategies by which a run of windows can be trained: the others are refused in a line."""

import sys
from importlib import import_module
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    SingleDeviceStrategy,
    StrategyRegistry,
)
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy
from lightning.pytorch.strategies.xla import XLAStrategy

from lit_sft.errors import require
from lit_sft.model.sharded.strategy import FSDP2, ShardedStrategy

NOT_OURS = (DeepSpeedStrategy, XLAStrategy, SingleDeviceXLAStrategy)
"""Subclasses of what trains windows that run a model in a way of their own."""


def require_known_name(asked: Any) -> None:
    """Raise `InputError` for a strategy that windows cannot be run by, before it is made.

    Args:
        asked: As `lightning.Trainer` takes it, or what a config holds of a class. One for a single
            device has to be an object: by name, it ignores how many devices are asked for.
    """
    if asked in ("auto", FSDP2):
        return
    path = getattr(asked, "class_path", None)
    if path:
        module, _, name = path.rpartition(".")
        _require_kind(getattr(import_module(module), name), path)
    elif isinstance(asked, str):
        known = asked.lower() in StrategyRegistry
        _require_kind(StrategyRegistry[asked.lower()]["strategy"] if known else None, asked)
    else:
        _require_kind(type(asked), type(asked).__name__, SingleDeviceStrategy)


def _require_kind(kind: Any, name: str, *others: type) -> None:
    """Raise `InputError` unless a class is of DDP's family, or of one of the others."""
    is_known = isinstance(kind, type) and issubclass(kind, (DDPStrategy, *others))
    require(
        is_known and not issubclass(kind, NOT_OURS),
        f"trainer.strategy must be auto, ddp or fsdp2, got {name}; a class is taken with options "
        "of its own, such as {class_path: DDPStrategy, init_args: {timeout: 0:05:00}}; that of "
        f"fsdp2 is {ShardedStrategy.__module__}.{ShardedStrategy.__name__}",
    )


def require_room_for(asked: Any, devices: int) -> None:
    """Raise `InputError` if the ranks of a run would not all be started, or none of them could be.

    Args:
        asked: As for `require_known_name`.
        devices: That the run is to have, on all of its machines.
    """
    require(
        devices <= 1 or not isinstance(asked, SingleDeviceStrategy),
        f"trainer.strategy: {type(asked).__name__} trains on one device, and trainer.devices and "
        f"num_nodes ask for {devices}; leave it at auto, or set both to 1",
    )
    # Lightning would name strategies that fork, which a run cannot have.
    require(
        devices <= 1 or not (hasattr(sys, "ps1") or sys.flags.interactive),
        f"trainer.devices: {devices} devices need a script, as an interactive Python or a notebook "
        "cannot start ranks; set it to 1, or run this as a script",
    )


def require_known_strategy(trainer: pl.Trainer) -> None:
    """Raise `InputError` for a strategy that windows cannot be run by, or that has nothing to do.

    Args:
        trainer: As it was made.
    """
    strategy = trainer.strategy
    _require_kind(type(strategy), type(strategy).__name__, SingleDeviceStrategy)
    require(
        getattr(strategy, "_start_method", "popen") == "popen",
        "trainer.strategy must be auto, ddp or fsdp2, got one that spawns or forks its ranks: a "
        "run starts commands of their own, for which it has to be a script",
    )
    require(
        not isinstance(strategy, ShardedStrategy) or trainer.world_size > 1,
        "trainer.strategy: fsdp2 shares the base out over several devices, and here is one; leave "
        "it at auto, or raise trainer.devices",
    )
