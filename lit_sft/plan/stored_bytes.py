"""How many bytes the state of an optimizer and the caches of a run take, from shapes alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PretrainedConfig

from lit_sft.model.fast.cross_entropy import ROWS_AT_ONCE, choose_chunk
from lit_sft.model.stored_base import OUTER_BLOCK
from lit_sft.paths import is_local, locate

SMALLEST_8BIT = 4096
"""Elements below which bitsandbytes keeps the states of an optimizer in float32."""


def count_state_bytes(optimizer: str, elements: int) -> int:
    """Return what an optimizer keeps of its parameters, from its first step on.

    Args:
        optimizer: As `build_optimizer` takes it. Of a class path, two moments in float32.
        elements: Of all parameters, which lie in one buffer.
    """
    if optimizer.endswith("8bit") and elements >= SMALLEST_8BIT:
        return 2 * (elements + -(-elements // OUTER_BLOCK) * 4 + 256 * 4)
    return 8 * elements


def count_head_bytes(
    states: int, width: int, vocabulary: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Return what the loss takes beside the layers, see `lit_sft.model.fast.cross_entropy`.

    Args:
        states: Supervised tokens of a pass.
        width: Of a hidden state.
        vocabulary: Rows of the head.
        dtype: Of the head.
        device: Where it is.
    """
    gradients = 3 * states * width * dtype.itemsize
    if device.type == "cpu":
        lists = -(-vocabulary // ROWS_AT_ONCE) + 1
        copied = min(vocabulary, ROWS_AT_ONCE) * width * dtype.itemsize
        return gradients + copied + lists * states * width * dtype.itemsize + 4 * states * width
    return gradients + 2 * 4 * min(states, choose_chunk(states, vocabulary)) * vocabulary


def count_cache_bytes(config: PretrainedConfig, rows: int, tokens: int, dtype: torch.dtype) -> int:
    """Return what the keys and values of a batch of answers take, in all layers.

    Args:
        config: Of the text model.
        rows: Of the batch.
        tokens: Of the longest prompt and the longest answer.
        dtype: Of keys and values.
    """
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    own = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * own * width * rows * tokens * dtype.itemsize)


def read_stored_size(base_model: str) -> int | None:
    """Return the bytes of a base's tensors on the disk, by the headers of its safetensors.

    Args:
        base_model: A folder; of a Hub id, only what is there already is looked at.

    Returns:
        None where there are none.
    """
    if not is_local(base_model):
        return None
    sizes: Mapping[str, int] = {
        "F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2
    }  # fmt: skip
    total = 0
    for path in sorted(Path(locate(base_model)).glob("*.safetensors")):
        opened: Any = safe_open(path, framework="pt")
        with opened as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                part = file.get_slice(name)
                total += sizes.get(part.get_dtype(), 1) * torch.Size(part.get_shape()).numel()
    return total or None


def count_trained(model: nn.Module) -> int:
    """Return how many numbers of a model are trained."""
    return sum(x.numel() for x in model.parameters() if x.requires_grad)
