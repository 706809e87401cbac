"""The update of a LoRA layer as one autograd function (Hu et al., 2021).

PEFT writes `result + lora_B(lora_A(dropout(x))) * scaling`, which keeps the dropped input of every
layer for the backward pass, in float32 where the base is no bitsandbytes layer, and runs over the
wide result three times. Here the scaling is part of a small matrix, the sum is part of a matrix
product, and the mask, a byte a number, is all that is kept beside what the base keeps anyway.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from lit_sft.model.principal import subtract_start

DRAWS = 2**16
"""Steps in which the probability of dropout is counted; four draws are cut from 64 random bits."""


def fuse_lora(model: nn.Module) -> None:
    """Let the LoRA layers of a `peft.PeftModel` compute their update by `lora_update`.

    Layers that are more than that, and forwards for other adapters, are left to PEFT.

    Args:
        model: Its parameters and their names stay what they are.
    """
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        is_linear = isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), nn.Linear)
        if is_linear and not layer.lora_variant:
            layer.forward = MethodType(_forward, layer)


def lora_update(
    result: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, dropout: float
) -> Tensor:
    """Add `dropout(x) @ lora_a.T @ lora_b.T * scaling` to `result`, in place.

    Args:
        result: `[..., out]`; its dtype is what is computed in.
        x: `[..., in]`, of any float dtype.
        lora_a: float32 `[r, in]`.
        lora_b: float32 `[out, r]`.
        scaling: Of the update.
        dropout: The share of `x` that is zeroed, to a 65,536th; the rest is scaled up.

    Returns:
        `result` itself, `[..., out]`.
    """
    apply: Callable[..., Tensor] = _LoraUpdate.apply
    return apply(result, x, lora_a, lora_b, scaling, dropout)


class _LoraUpdate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, result: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        dtype = result.dtype
        rows, a, b = x.reshape(-1, x.shape[-1]).to(dtype), a.to(dtype), b.to(dtype)
        keep = draw_mask(rows, dropout) if dropout else None
        ctx.scaling = scaling / (1 - dropout)
        reduced = _keep(rows, keep) @ a.T
        result.view(-1, result.shape[-1]).addmm_(reduced, b.T, alpha=ctx.scaling)
        ctx.mark_dirty(result)
        ctx.save_for_backward(rows, keep, reduced, a, b)
        ctx.x_like = x.shape, x.dtype
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, keep, reduced, a, b = ctx.saved_tensors
        (gradient,) = gradients
        flat = gradient.reshape(-1, gradient.shape[-1])
        of_reduced = flat @ (b * ctx.scaling)
        of_a = of_reduced.T @ _keep(rows, keep)
        of_b = (flat.T @ reduced).float() * ctx.scaling
        shape, dtype = ctx.x_like
        of_x = _keep(of_reduced @ a, keep).to(dtype).view(shape)
        return gradient, of_x, of_a.float(), of_b, None, None


def draw_mask(rows: Tensor, dropout: float) -> Tensor:
    """Return which entries are kept, bool `[rows, in]`, of the shape of `rows`.

    On a CPU, cutting random words is several times as fast as `bernoulli_`. (`torch.compile` knows
    the operation `randint`, and no `random_` with a range.)
    """
    if rows.device.type != "cpu":
        return torch.empty_like(rows, dtype=torch.bool).bernoulli_(1 - dropout)
    words = torch.randint(-(2**63), 2**63 - 1, ((rows.numel() + 3) // 4,))
    draws = words.view(torch.int16)[: rows.numel()].view(rows.shape)
    return draws >= round(dropout * DRAWS) - DRAWS // 2


def _keep(rows: Tensor, keep: Tensor | None) -> Tensor:
    return rows if keep is None else rows * keep.to(rows.dtype)


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Stand for the forward of a PEFT layer, which takes what is not plain LoRA."""
    active = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(active) != 1 or args or kwargs:
        forwarded: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return forwarded
    (name,) = active
    dropout = layer.lora_dropout[name]  # an Identity where nothing is dropped
    result = layer.base_layer(x)
    if hasattr(layer, "start_A"):
        result = subtract_start(layer, result, x)
    return lora_update(
        result,
        x,
        layer.lora_A[name].weight,
        layer.lora_B[name].weight,
        layer.scaling[name],
        getattr(dropout, "p", 0.0) if dropout.training else 0.0,
    )
