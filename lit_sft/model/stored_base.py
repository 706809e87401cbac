"""How many bytes a frozen base takes in memory, from shapes alone."""

import re
from collections import defaultdict
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from lit_sft.export.base_files import find_quantized
from lit_sft.model.base_model import Quantization

BLOCK = 64
"""Weights that share a scale, where nothing else is said to bitsandbytes."""
OUTER_BLOCK = 256
"""Scales that share one of their own, where they are coded, too."""


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


def share_out(base: StoredBase, ranks: int) -> StoredBase:
    """Return what one of several ranks holds of a base whose layers are shared out.

    Args:
        base: As `measure_base` returns it. What is not quantised is counted whole.
        ranks: How many there are.
    """
    codes, scales, quantized = (-(-x // ranks) for x in base[:3])
    return StoredBase(codes, scales, quantized, *base[3:])


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
