"""Keep the quantised weights of a frozen base in the dtype that they are computed in.

bitsandbytes makes them anew in every forward, every backward, and every recomputed forward. They
never change, so that once is enough where memory allows it. The numbers stay the same, to the bit
wherever bitsandbytes multiplies with what it dequantises; for the few tokens of a decoding step on
CUDA it has a kernel that rounds otherwise.
"""

from typing import Any, Literal

import torch
from torch import nn

from lit_sft.errors import InputError
from lit_sft.model.fast.memory import GIB, free_memory_bytes

WeightCache = Literal["auto", "none", "bf16"]
AFFORDABLE = 0.5
"""The share of the free memory that `auto` takes at most; activations need the rest."""


def cache_weights(
    base: nn.Module, cache: WeightCache, dtype: torch.dtype, device: torch.device
) -> int:
    """Replace the 4-bit layers of a base by plain ones that hold the rounded weights.

    Args:
        base: Before an adapter is attached.
        cache: `auto` does it where it takes up to half of the free memory.
        dtype: What the base is computed in.
        device: Where it is.

    Returns:
        The bytes that the weights take now; 0 where nothing was done.

    Raises:
        InputError: If `bf16` is asked for and there is no memory for it, or another dtype.
    """
    layers = find_quantized_layers(base)
    if cache == "none" or not layers:
        return 0
    needed = sum(layer.in_features * layer.out_features for _, _, layer in layers) * dtype.itemsize
    free = free_memory_bytes(device)
    if cache == "auto" and needed > AFFORDABLE * free:
        return 0
    if cache == "bf16" and dtype != torch.bfloat16:
        raise InputError(
            "model.quantization.weight_cache: bf16 goes with trainer.precision bf16-mixed; auto "
            "keeps the weights in the dtype of any other"
        )
    if needed > free:
        raise InputError(
            f"model.quantization.weight_cache: bf16 takes {needed / GIB:.1f} GiB, and "
            f"{free / GIB:.1f} GiB are free on {device}; use auto or none"
        )
    for parent, name, layer in layers:
        setattr(parent, name, _dequantize(layer, dtype))
    return needed


def find_quantized_layers(base: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Return the 4-bit layers of a model, each behind its parent and its name there."""
    return [
        (parent, name, child)
        for parent in base.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and hasattr(child.weight, "quant_state")
    ]


def _dequantize(layer: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    from bitsandbytes.functional import dequantize_4bit

    quantized: Any = layer.weight
    weight = dequantize_4bit(quantized.data, quantized.quant_state).to(dtype)
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias = layer.bias
    return plain.train(layer.training)
