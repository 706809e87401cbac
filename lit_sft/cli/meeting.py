"""What is looked at before the ranks of a run meet, and the config that they compare then."""

import os
import re
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from lit_sft.model.cards import has_nccl, require_transport
from lit_sft.model.peers import PEERS
from lit_sft.ranks import require_others

OF_A_MACHINE = ("config", "ckpt_path", "data.cache_dir", "trainer.default_root_dir")
"""Options in which the machines of a run may differ."""


def prepare_to_meet(trainer: pl.Trainer) -> None:
    """Find what would keep the ranks of a run from meeting, and listen to them from then on.

    Args:
        trainer: That is about to run.

    Raises:
        InputError: If there is no way for them to meet.
    """
    if trainer.world_size == 1:
        return
    strategy: Any = trainer.strategy
    require_transport(strategy.root_device.type, trainer.world_size, has_nccl())
    if isinstance(strategy.cluster_environment, LightningEnvironment):
        require_others(trainer.num_nodes, os.environ)
    PEERS.listen()


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the options of a config by dotted names, but for where things lie on a machine.

    Args:
        config: As plain values.
        prefix: Of the names.
    """
    options: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            options |= flatten_config(value, f"{prefix}{name}.")
        elif f"{prefix}{name}" not in OF_A_MACHINE:
            # Of what has no text of its own, the address is another in each process.
            options[f"{prefix}{name}"] = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return options
