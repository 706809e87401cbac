"""A frozen 4-bit layer as one autograd function, or as one operation of what is compiled.

bitsandbytes checks and converts at each call, where it breaks a compiled layer into pieces: a pass
of Llama-3.2-3B that computes its layers again is then 5,600 kernel launches, and the device waits
for most of them. Here the tensors of a weight are taken out of their wrapper once, and what is left
of a call are two kernels that dequantise (Dettmers et al., 2023) and a matrix product.
"""

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_sft.model.fast.memory import find_quantized_layers

ALIGNMENT = 512
"""Bytes, to whole multiples of which torch rounds all memory of a card."""


class Packed(NamedTuple):
    """A weight `[out, in]` in blocks of 4-bit codes, each with a scale; scales are coded, too."""

    codes: Tensor
    """uint8 `[out * in / 2, 1]`; with the scales behind them, what `join` makes of both."""
    scales: Tensor | None
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


def join(packed: Packed) -> Packed:
    """Return a weight whose codes and scales are one tensor: float32 `[some, 1]`.

    FSDP takes its time in Python for each that it gathers, and in torch 2.11 takes no integers. Nor
    may it be bfloat16: FSDP gathers by `torch._foreach_copy_`, whose CUDA kernel converts that to
    float32 and back, and makes one NaN of all (pytorch#159333, bitsandbytes#1945): one of 1,400
    pairs of codes would be another. It has two dimensions, as the fingerprint of a base is made of
    the parameters that have one.
    """
    both = [x.flatten().view(torch.uint8) for x in part(packed)]
    padded = [functional.pad(x, (0, -x.numel() % ALIGNMENT)) for x in both]
    return Packed(torch.cat(padded).view(torch.float32).view(-1, 1), None, *packed[2:])


def part(packed: Packed) -> tuple[Tensor, Tensor]:
    """Return codes and scales of a weight, which are views where they are one tensor."""
    if packed.scales is not None:
        return packed.codes, packed.scales
    weights = packed.shape[0] * packed.shape[1]
    codes, blocks = -(-weights // 2), -(-weights // packed.block)
    kind = torch.float32 if packed.scale_codes is None else torch.uint8
    both, start = packed.codes.view(-1).view(torch.uint8), -(-codes // ALIGNMENT) * ALIGNMENT
    scales = both[start : start + blocks * kind.itemsize].view(kind)
    return both[:codes].view(-1, 1), scales


def dequantize(packed: Packed, dtype: torch.dtype) -> Tensor:
    """Return the weight, `[out, in]`, as bitsandbytes dequantises it."""
    ops: Any = torch.ops.bitsandbytes
    codes, scales = part(packed)
    if packed.scale_codes is not None:
        scales = ops.dequantize_blockwise.default(
            scales, packed.outer_scales, packed.scale_codes, packed.outer_block, torch.float32
        )
        scales = scales + packed.offset
    weight: Tensor = ops.dequantize_4bit.default(
        codes, scales, packed.block, packed.kind, packed.shape, dtype
    )
    return weight


def multiply_packed(x: Tensor, packed: Packed, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias`; the weight is made anew in the backward pass.

    Neither weight nor bias gets a gradient. Autocast has to be off: it would compute in another
    dtype than that of `x`.

    Args:
        x: `[..., in]`, of the dtype that is computed in.
        packed: The weight.
        bias: `[out]`.
    """
    if torch.compiler.is_compiling():
        return cast(Tensor, _multiply(x, bias, *packed, False))
    apply: Callable[..., Tensor] = _MultiplyPacked.apply
    return apply(x, bias, *packed)


class _MultiplyPacked(torch.autograd.Function):
    """`[..., out]` of `[..., in]`, and the gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, *packed: Any) -> Tensor:
        _keep(ctx, (x, bias, *packed))
        return _run(x, bias, Packed(*packed))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        weight = Packed(*ctx.saved_tensors, *ctx.rest)
        return _run(gradient, None, weight, is_back=True), None, *[None] * len(weight)


def _run(x: Tensor, bias: Tensor | None, packed: Packed, is_back: bool = False) -> Tensor:
    weight = dequantize(packed, x.dtype)
    if is_back:
        return x @ weight
    return x @ weight.T if bias is None else functional.linear(x, weight, bias.to(x.dtype))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: object = None) -> None:
    """Keep a weight as it is stored; `inputs` are those of a forward."""
    packed = inputs[2:11]
    ctx.save_for_backward(*packed[:5])
    ctx.rest = packed[5:]


# The number is to be raised whenever what it does is changed, here or in its backward: torch keeps
# what it has compiled under the name.
@torch.library.custom_op("lit_sft::multiply_packed_2", mutates_args=())
def _multiply(
    x: Tensor,
    bias: Tensor | None,
    codes: Tensor,
    scales: Tensor | None,
    scale_codes: Tensor | None,
    outer_scales: Tensor | None,
    offset: Tensor | None,
    block: int,
    outer_block: int,
    kind: str,
    shape: Sequence[int],
    is_back: bool,
) -> Tensor:
    """Do the same as one operation, into which a compiler does not see.

    It would find that both passes dequantise one weight, do that once, and keep the result from the
    one to the other: 5.2 GiB of a Llama-3.2-3B.
    """
    inner = scale_codes, outer_scales, offset
    packed = Packed(codes, scales, *inner, block, outer_block, kind, (shape[0], shape[1]))
    return _run(x, bias, packed, is_back)


@_multiply.register_fake
def _(x: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    *_, (height, width), is_back = rest
    return x.new_empty((*x.shape[:-1], width if is_back else height))


def _multiply_back(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    weight = *ctx.saved_tensors, *ctx.rest
    return _multiply(gradient, None, *weight, True), None, *[None] * (len(weight) + 1)


_multiply.register_autograd(_multiply_back, setup_context=_keep)


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
