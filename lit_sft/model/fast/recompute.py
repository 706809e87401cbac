"""Which layers keep their activations, and which compute them again (Chen et al., 2016)."""

from typing import Any, Literal

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_sft.data.batching import pack_batch, pad_batch
from lit_sft.model.fast.memory import GIB
from lit_sft.model.loss import sum_supervised_loss
from lit_sft.types import Example

Policy = Literal["auto", "all", "none", "every_n"]
PROBED_TOKENS = 64
RESERVED_BYTES = 2 * GIB
"""For the logits of a chunk, the gradients, and what the optimizer holds from its first step on."""
USABLE = 0.85
"""The share of the rest of the free memory that activations may take; blocks are never packed."""


def recompute_layers(model: Any, count: int) -> None:
    """Let evenly spread layers keep their input alone, and the others all that they need.

    Args:
        model: A model of transformers, or a `peft.PeftModel`; it applies in training mode alone.
        count: How many layers compute their forward again.
    """
    layers = find_layers(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = (index + 1) * count // len(layers) > (
            index * count // len(layers)
        )


def find_layers(model: nn.Module) -> list[Any]:
    """Return the layers that can compute their forward again."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def choose_count(bytes_per_layer: float, layers: int, free: float) -> int:
    """Return the smallest number of layers to recompute with which the others' activations fit.

    Args:
        bytes_per_layer: What one layer keeps for a whole pass.
        layers: Of the model.
        free: In bytes, before the first step.
    """
    room = max(0.0, (free - RESERVED_BYTES) * USABLE)
    # A recomputed layer, too, holds all its activations once, in its own backward.
    fitting = int(room // bytes_per_layer)
    return 0 if fitting >= layers else min(layers, layers - fitting + 1)


def count_bytes_per_token(model: Any, device: torch.device, packed: bool = True) -> float:
    """Return what one token keeps for the backward pass in one layer, counted in a small forward.

    Args:
        model: A `peft.PeftModel` in training mode; random states are left as they were.
        device: Where it is.
        packed: Whether rows are to be laid end to end.
    """
    ids = [1] * PROBED_TOKENS
    row = [Example(ids, ids)]
    batch = pack_batch(row) if packed else pad_batch(row, pad_token_id=0)
    on_device = move_data_to_device(batch, device)
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
    ):
        loss = sum_supervised_loss(model, on_device)  # holds the graph, so that no memory is reused
    del loss
    return sum(kept.values()) / PROBED_TOKENS / len(find_layers(model))
