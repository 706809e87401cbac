"""The gate of an MLP, `silu(gate) * up` (Shazeer, 2020), made again rather than kept.

torch keeps the two halves, the activated one and the product, which the down layer's adapter wants,
too. Here the halves alone are kept: the rest is made of them again, in a pass over memory each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Gated(NamedTuple):
    """The two halves of a gated activation, `[..., intermediate]` each."""

    gate: Tensor
    up: Tensor


def swiglu(gated: Gated) -> Tensor:
    """Return `silu(gate) * up`, `[..., intermediate]`; its backward keeps the halves alone."""
    apply: Callable[..., Tensor] = _SwiGLU.apply
    return apply(*gated)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        (gradient,) = gradients
        of_gate = torch.ops.aten.silu_backward.default(gradient * up, gate)
        return of_gate, gradient * functional.silu(gate)
