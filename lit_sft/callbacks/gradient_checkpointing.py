"""Trade arithmetic for memory."""

from typing import Any

import lightning.pytorch as pl

from lit_sft.data.protocol import SizedData
from lit_sft.errors import require
from lit_sft.model.fast.memory import (
    Policy,
    choose_count,
    count_bytes_per_token,
    find_layers,
    free_memory_bytes,
    recompute_layers,
)
from lit_sft.model.figures import GIB
from lit_sft.model.module import SFTModule


class GradientCheckpointing(pl.Callback):
    """Let layers keep one activation, and compute the others again in the backward pass.

    With a frozen base there are no weight gradients to compute, so the recomputed forward costs
    about half of the step rather than a third of it.

    Args:
        policy: `all` layers, `none`, one of `every_n`, or as few as the free memory asks for,
            judged from a small forward before the first step: `auto`. The numbers of the run are
            the same under each.
        n: Of `every_n`.
    """

    def __init__(self, policy: Policy = "auto", n: int = 2) -> None:
        require(n > 0, f"GradientCheckpointing.n must be positive, got {n}")
        self.policy, self.n = policy, n

    def on_fit_start(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Turn it on; transformers applies it in training mode alone."""
        layers = len(find_layers(pl_module.model))
        data: Any = getattr(trainer, "datamodule", None)
        if self.policy != "auto" or not hasattr(data, "max_tokens_per_pass"):
            count = self.count(layers)
        else:
            count = self._choose(trainer, pl_module, layers)
        if count:
            recompute_layers(pl_module.model, count)

    def count(
        self, layers: int, bytes_per_layer: float = float("inf"), free: float = float("inf")
    ) -> int:
        """Return how many layers are to be recomputed.

        Args:
            layers: Of the model.
            bytes_per_layer: What one keeps for a whole pass, which `auto` looks at.
            free: In bytes, before the first step; likewise.
        """
        if self.policy == "auto":
            return choose_count(bytes_per_layer, layers, free) if free < float("inf") else layers
        return {"all": layers, "none": 0, "every_n": layers // self.n}[self.policy]

    def advise_less_memory(self) -> str:
        """Return what would recompute more; nothing where all layers are."""
        return "" if self.policy == "all" else "GradientCheckpointing's policy: all"

    def _choose(self, trainer: pl.Trainer, pl_module: SFTModule, layers: int) -> int:
        data: Any = getattr(trainer, "datamodule", None)
        packed, tokens = data.batching == "padding_free", count_pass_tokens(data)
        with trainer.precision_plugin.forward_context():
            per_token = count_bytes_per_token(pl_module.model, pl_module.device, packed)
        free = free_memory_bytes(pl_module.device)
        count = self.count(layers, per_token * tokens, free)
        if trainer.is_global_zero:
            print(
                f"recomputing {count} of {layers} layers: all activations of {tokens:,} tokens "
                f"take {per_token * tokens * layers / GIB:.1f} GiB, and {free / GIB:.1f} GiB are "
                "free",
                flush=True,
            )
        return count


def count_pass_tokens(data: SizedData) -> int:
    """Return the most tokens that a pass of some data may have, padding included."""
    packed = data.batching == "padding_free"
    return data.max_tokens_per_pass if packed else data.batch_size * data.max_length
