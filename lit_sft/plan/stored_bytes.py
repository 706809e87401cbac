"""How many bytes a base, its adapter and its caches take, from shapes alone."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from lit_sft.export.base_files import find_quantized
from lit_sft.model.base_model import Quantization
from lit_sft.model.fast.cross_entropy import ROWS_AT_ONCE, choose_chunk
from lit_sft.paths import is_local, locate

BLOCK = 64
"""Weights that share a scale, where nothing else is said to bitsandbytes."""
OUTER_BLOCK = 256
"""Scales that share one of their own, where they are coded, too."""
SMALLEST_8BIT = 4096
"""Elements below which bitsandbytes keeps the states of an optimizer in float32."""


class StoredBase(NamedTuple):
    """Bytes of a frozen base in memory, by part."""

    codes: int
    """Of the 4-bit weights."""
    scales: int
    """Of their blocks, with what these are coded by."""
    quantized: int
    """Weights in four bits; a number, and no bytes."""
    embeddings: int
    """Of embedding and head, once where they are tied."""
    others: int
    """Of norms, biases, buffers, and of what `left` names."""
    left: dict[str, int]
    """Matrices that quantisation leaves as they are, such as the fused parameters of experts, by
    name, in which `*` stands for the number of a layer."""


def measure_base(
    layers: PreTrainedModel, quantization: Quantization, dtype: torch.dtype
) -> StoredBase:
    """Return what a base takes once it is loaded, its `weight_cache` left out of account.

    Args:
        layers: The model, with weights or without.
        quantization: How it is stored.
        dtype: Of all that is not quantised.
    """
    names = find_quantized(layers, quantization)
    codes = scales = quantized = embeddings = others = 0
    left: dict[str, int] = defaultdict(int)
    model: Any = layers
    ends = {id(x.weight) for x in (model.get_input_embeddings(), model.get_output_embeddings())}
    for name, parameter in layers.named_parameters():  # tied ones come once
        count = parameter.numel()
        if name in names:
            codes += (count + 1) // 2
            scales += count_scale_bytes(count, quantization.double_quant)
            quantized += count
        elif id(parameter) in ends:
            embeddings += count * dtype.itemsize
        else:
            others += count * dtype.itemsize
            if parameter.ndim > 1 and names:
                left[re.sub(r"\.\d+(?=\.)", ".*", name)] += count * dtype.itemsize
    others += sum(x.numel() * x.element_size() for x in layers.buffers())
    return StoredBase(codes, scales, quantized, embeddings, others, dict(left))


def count_scale_bytes(weights: int, double_quant: bool) -> int:
    """Return what the scales of a 4-bit matrix take.

    Args:
        weights: Of the matrix.
        double_quant: Whether scales are a byte each, with scales of their own, or float32.
    """
    blocks = -(-weights // BLOCK)
    values = 16 * 4  # of the 4-bit codes
    if not double_quant:
        return blocks * 4 + values
    return blocks + 256 * 4 + -(-blocks // OUTER_BLOCK) * 4 + 4 + values


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
