"""Whether the base of a run is shared out over its ranks, and what cannot be then."""

from typing import TYPE_CHECKING, Any

import torch

from lit_sft.errors import InputError, require
from lit_sft.model.base_model import outline
from lit_sft.model.device import compute_dtype
from lit_sft.model.distributed import max_over_ranks, say_once
from lit_sft.model.fast.memory import RESERVED_BYTES, USABLE, free_memory_bytes
from lit_sft.model.figures import GIB
from lit_sft.model.sharded.in_step import is_sharded
from lit_sft.model.sharded.strategy import FSDP2, ShardedStrategy
from lit_sft.model.stored_base import measure_base
from lit_sft.run.checkpoint_io import skim_checkpoint

if TYPE_CHECKING:
    from lit_sft.model.module import SFTModule


def keep_strategy(strategy: Any, checkpoint: str | None) -> None:
    """Let a run that goes on hold its base as it did, where its strategy leaves that open.

    Args:
        strategy: Of its trainer.
        checkpoint: From which it goes on, if it does.

    Raises:
        InputError: If that cannot be read.
    """
    if checkpoint and isinstance(strategy, ShardedStrategy) and strategy.shards is None:
        settings = skim_checkpoint(checkpoint).get("settings", {})
        earlier = settings.get("trainer.strategy")
        strategy.earlier = earlier if earlier in ("ddp", FSDP2) else None


def is_to_shard(module: "SFTModule") -> bool:
    """Return whether each rank is to hold but a share of the base; all ranks must ask.

    Where the strategy leaves it open, the memory of the devices decides, and it is said.

    Args:
        module: In a trainer, whose ranks are connected.

    Raises:
        InputError: If the run cannot be sharded, and is to be, or does not fit otherwise.
    """
    strategy = module.trainer.strategy
    if not isinstance(strategy, ShardedStrategy):
        return False
    if strategy.shards is None:
        strategy.shards = _does_not_fit(module, strategy)
    if strategy.shards:
        require_shardable(module, strategy.earlier)
    return strategy.shards


def name_strategy(module: "SFTModule") -> str:
    """Return how a run holds its base: `fsdp2`, `ddp` or `one device`.

    Args:
        module: In a trainer, with its model built.
    """
    if is_sharded(module.model):
        return FSDP2
    return "ddp" if module.trainer.world_size > 1 else "one device"


def require_shardable(module: "SFTModule", earlier: str | None = None) -> None:
    """Raise `InputError` if what a run asks for needs whole weights of the base on each rank.

    Args:
        module: Whose options say what is asked.
        earlier: How the run that goes on held its base, where `auto` keeps that.
    """
    why = "auto goes on as the run did, by fsdp2, which" if earlier == FSDP2 else FSDP2
    lora, option = module.lora, f"trainer.strategy: {why} shards a frozen base, and "
    if lora is None:
        raise InputError(f"{option}model.lora: null trains all of it; use ddp")
    require(
        not lora.use_dora,
        f"{option}model.lora.use_dora takes the norms of whole weights in every step; use ddp, or "
        "leave it out",
    )
    require(
        lora.init_weights == "default",
        f"{option}model.lora.init_weights {lora.init_weights} decomposes whole weights; use ddp, "
        "or leave it out",
    )


def _does_not_fit(module: "SFTModule", strategy: ShardedStrategy) -> bool:
    """Return whether some device lacks the memory for the whole base, and say so."""
    layers = outline(module.base_model, module.base_config)
    dtype = compute_dtype(str(module.trainer.precision))
    if module.lora is None:
        dtype = torch.float32
    base, device = measure_base(layers, module.quantization, dtype), strategy.root_device
    needed = base.codes + base.scales + base.embeddings + base.others
    if module.quantization.weight_cache == "bf16":
        needed += base.quantized * dtype.itemsize - base.codes - base.scales
    free = free_memory_bytes(device)
    if device.type == "cpu":  # which the ranks of a machine share
        free /= strategy.num_processes
    free = -max_over_ranks(-int(free), device)
    fits, stays = does_fit(needed, free), does_stay_whole(needed, free, strategy.earlier)
    reason = "" if fits else ", which is less than a step takes with it; its layers are shared out"
    if fits != stays:
        reason = f"; the run goes on as it did, by {strategy.earlier}"
    say_once(
        f"strategy {'ddp' if stays else FSDP2}: the base takes {needed / GIB:.1f} GiB, and each "
        f"of {module.trainer.world_size} devices has {free / GIB:.1f} GiB free{reason}"
    )
    return not stays


def does_fit(needed: float, free: float) -> bool:
    """Return whether a device holds a base, and has enough left for steps that recompute layers.

    Args:
        needed: Bytes of the base.
        free: Bytes there, before it is loaded.
    """
    return needed + RESERVED_BYTES <= USABLE * free


def does_stay_whole(needed: float, free: float, earlier: str | None) -> bool:
    """Return whether each device is to hold the whole base: as it did before, if it still can.

    Args:
        needed: As for `does_fit`.
        free: Likewise.
        earlier: `ddp` or `fsdp2`, as the run had it that goes on, or None for a new one.
    """
    if earlier in (None, FSDP2):
        return earlier is None and does_fit(needed, free)
    return needed + RESERVED_BYTES <= free
