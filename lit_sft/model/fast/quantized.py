"""A frozen 4-bit layer as one autograd function that a compiler sees through.

bitsandbytes checks and converts at each call, where it breaks a compiled layer into pieces: a pass
of Llama-3.2-3B that computes its layers again is then 5,600 kernel launches, and the device waits
for most of them. Here the tensors of a weight are taken out of their wrapper once, and what is left
of a call are two kernels that dequantise (Dettmers et al., 2023) and a matrix product.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_sft.model.fast.memory import find_quantized_layers


class Packed(NamedTuple):
    """A weight `[out, in]` in blocks of 4-bit codes, each with a scale; scales are coded, too."""

    codes: Tensor
    """uint8 `[out * in / 2, 1]`."""
    scales: Tensor
    """Of each block: float32, or uint8 with `scale_codes`, `outer_scales` and `offset`."""
    scale_codes: Tensor | None
    """float32 `[256]`, the values of a coded scale."""
    outer_scales: Tensor | None
    """float32, of each block of scales."""
    offset: Tensor | None
    """float32 `[]`, added to the scales."""
    block: int
    outer_block: int
    kind: str
    """`nf4` or `fp4`."""
    shape: tuple[int, int]


def fuse_quantized(model: nn.Module) -> None:
    """Let the 4-bit layers of a model compute by `multiply_packed` while they are trained.

    Answers, and layers with a bias, are left to bitsandbytes, which has a kernel for few tokens.

    Args:
        model: On its device.
    """
    for _, _, layer in find_quantized_layers(model):
        if layer.bias is None:
            packed = unpack_state(layer.weight)
            layer.forward = MethodType(_make_forward(packed), layer)


def unpack_state(weight: Any) -> Packed:
    """Return the tensors of a `bitsandbytes.nn.Params4bit`, which share its memory."""
    return pack(torch.Tensor.as_subclass(weight.data, torch.Tensor), weight.quant_state)


def pack(codes: Tensor, state: Any) -> Packed:
    """Return what bitsandbytes' `quantize_4bit` gives, as one; the tensors share its memory.

    Args:
        codes: uint8 `[out * in / 2, 1]`.
        state: Its `QuantState`.
    """
    inner = state.state2 if state.nested else None
    return Packed(
        codes,
        state.absmax,
        inner and inner.code,
        inner and inner.absmax,
        state.offset if inner else None,
        state.blocksize,
        inner.blocksize if inner else 0,
        state.quant_type,
        tuple(state.shape),
    )


def dequantize(packed: Packed, dtype: torch.dtype) -> Tensor:
    """Return the weight, `[out, in]`, as bitsandbytes dequantises it."""
    ops: Any = torch.ops.bitsandbytes
    scales = packed.scales
    if packed.scale_codes is not None:
        scales = ops.dequantize_blockwise.default(
            scales, packed.outer_scales, packed.scale_codes, packed.outer_block, torch.float32
        )
        scales = scales + packed.offset
    weight: Tensor = ops.dequantize_4bit.default(
        packed.codes, scales, packed.block, packed.kind, packed.shape, dtype
    )
    return weight


def multiply_packed(x: Tensor, packed: Packed, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias`; the weight is made anew in the backward pass.

    Neither weight nor bias gets a gradient.

    Args:
        x: `[..., in]`, of the dtype that is computed in.
        packed: The weight.
        bias: `[out]`.
    """
    apply: Callable[..., Tensor] = _MultiplyPacked.apply
    return apply(x, bias, *packed)


class _MultiplyPacked(torch.autograd.Function):
    """`[..., out]` of `[..., in]`, and the gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, *packed: Any) -> Tensor:
        weight = Packed(*packed)
        ctx.save_for_backward(*weight[:5])
        ctx.rest = weight[5:]
        whole = dequantize(weight, x.dtype)
        return x @ whole.T if bias is None else functional.linear(x, whole, bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        weight = Packed(*ctx.saved_tensors, *ctx.rest)
        return gradient @ dequantize(weight, gradient.dtype), None, *[None] * len(weight)


def _make_forward(packed: Packed) -> Callable[[Any, Tensor], Tensor]:
    def forward(layer: Any, x: Tensor) -> Tensor:
        """Return `[..., out]` of `[..., in]`, in its dtype."""
        if not (layer.training and torch.is_grad_enabled()):
            answered: Tensor = type(layer).forward(layer, x)
            return answered
        dtype = layer.compute_dtype or x.dtype
        with torch.autocast(x.device.type, enabled=False):
            return multiply_packed(x.to(dtype), packed).to(x.dtype)

    return forward
