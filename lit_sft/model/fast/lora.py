"""The updates of LoRA layers as one autograd function (Hu et al., 2021).

PEFT writes `result + lora_B(lora_A(dropout(x))) * scaling`, which keeps the dropped input of every
layer for the backward pass, in float32 where the base is no bitsandbytes layer, and runs over the
wide result three times. Here the scaling is part of a small matrix, the sum is part of a matrix
product, and the mask, a byte a number, is all that is kept beside what the base keeps anyway.

Layers of one input are one call: their halves A stand in one matrix, and they see the same dropped
input. Hu et al.'s own `loralib.MergedLinear` draws one mask for q, k and v, too; PEFT draws three.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_sft.model.fast.swiglu import Gated, swiglu
from lit_sft.model.principal import subtract_start

DRAWS = 2**16
"""Steps in which the probability of dropout is counted; four draws are cut from 64 random bits."""


class Update(NamedTuple):
    """What a LoRA layer adds to its base: `dropout(x) @ a.T @ b.T * scaling`."""

    a: Tensor
    """float32 `[r, in]`."""
    b: Tensor
    """float32 `[out, r]`."""
    scaling: float
    dropout: float
    """The share of the input that is zeroed, to a 65,536th; the rest is scaled up."""


def fuse_lora(model: nn.Module) -> None:
    """Let the LoRA layers of a `peft.PeftModel` compute their update by `add_updates`.

    Layers that are more than that, and forwards for other adapters, are left to PEFT.

    Args:
        model: Its parameters and their names stay what they are.
    """
    for layer in model.modules():
        if is_plain_lora(layer):
            layer.forward = MethodType(forward_alone, layer)


def is_plain_lora(layer: Any) -> bool:
    """Return whether a module is a linear layer with a LoRA adapter that is nothing more."""
    from peft.tuners.lora import LoraLayer

    is_linear = isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), nn.Linear)
    return is_linear and not layer.lora_variant


@contextmanager
def rounded_updates(model: Any) -> Iterator[None]:
    """Hold the halves of plain LoRA layers in what autocast computes in, where it is on.

    They are float32, and would be rounded at each call: a sixth of the kernels of a decoding step.

    Args:
        model: Of transformers or PEFT, that is not trained meanwhile.
    """
    device = model.device.type
    is_on = torch.is_autocast_enabled(device)
    layers: Iterator[Any] = filter(is_plain_lora, model.modules() if is_on else ())
    halves = [x for layer in layers for x in (*layer.lora_A.values(), *layer.lora_B.values())]
    held = [half.weight for half in halves]
    try:
        for half, weight in zip(halves, held, strict=True):
            rounded = weight.detach().to(torch.get_autocast_dtype(device))
            half.weight = nn.Parameter(rounded, requires_grad=False)
        yield
    finally:
        for half, weight in zip(halves, held, strict=True):
            half.weight = weight


def read_update(layer: Any) -> Update | None:
    """Return what a plain LoRA layer adds now, or None where that is none or several updates."""
    active = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(active) != 1:
        return None
    (name,) = active
    dropout = layer.lora_dropout[name]  # an Identity where nothing is dropped
    return Update(
        layer.lora_A[name].weight,
        layer.lora_B[name].weight,
        layer.scaling[name],
        getattr(dropout, "p", 0.0) if dropout.training else 0.0,
    )


def forward_alone(layer: Any, x: Tensor, *args: object, **kwargs: object) -> Tensor:
    """Stand for the forward of a PEFT layer, which takes what is not plain LoRA.

    Args:
        layer: As `is_plain_lora` knows it.
        x: `[..., in]`.
        *args: Which only PEFT understands.
        **kwargs: Likewise.
    """
    update = None if args or kwargs else read_update(layer)
    if update is None:
        forwarded: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return forwarded
    (result,) = run_adapted([layer], x, [update])
    return result


def run_adapted(
    layers: Sequence[object], x: Tensor, updates: Sequence[Update], gated: Gated | None = None
) -> list[Tensor]:
    """Return what plain LoRA layers give for one input, each `[..., out]`.

    Args:
        layers: Of PEFT.
        x: `[..., in]`.
        updates: Of each, as `add_updates` takes them.
        gated: Likewise.
    """
    rows = x.reshape(-1, x.shape[-1])
    # Of rows, a layer with a bias returns no view either, of which autograd knows only one at once.
    results = add_updates([_run_base(layer, rows) for layer in layers], rows, updates, gated)
    return [result.view(*x.shape[:-1], -1) for result in results]


def _run_base(layer: Any, rows: Tensor) -> Tensor:
    """Return `[rows, out]` of `[rows, in]`, less what an adapter that starts from it has of it."""
    result: Tensor = layer.base_layer(rows)
    return subtract_start(layer, result, rows) if hasattr(layer, "start_A") else result


def add_updates(
    results: Sequence[Tensor], x: Tensor, updates: Sequence[Update], gated: Gated | None = None
) -> Sequence[Tensor]:
    """Add the updates of layers that have one input to what their bases gave, in place.

    Args:
        results: Of each, `[rows, out]`, no views, of one dtype, which is what is computed in.
        x: `[rows, in]`, of any float dtype.
        updates: Of each; the dropout of the first is that of all.
        gated: What `x` was made of, if it is to be made again in the backward pass, not kept.

    Returns:
        The results themselves.
    """
    apply: Callable[..., Sequence[Tensor]] = _AddUpdates.apply
    scalings = tuple(update.scaling for update in updates)
    halves = [update.a for update in updates] + [update.b for update in updates]
    return apply(x, *(gated or (None, None)), updates[0].dropout, scalings, *results, *halves)


class _AddUpdates(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate: Tensor | None,
        up: Tensor | None,
        dropout: float,
        scalings: tuple[float, ...],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        count = len(scalings)
        results, dtype = tensors[:count], tensors[0].dtype
        halves = tensors[count : 2 * count]
        a = (halves[0] if count == 1 else torch.cat(halves)).to(dtype)
        bs = [b.to(dtype) for b in tensors[2 * count :]]
        rows = x.to(dtype)
        keep = draw_mask(rows, dropout) if dropout else None
        ctx.scalings = [scaling / (1 - dropout) for scaling in scalings]
        ctx.ranks = [len(half) for half in halves]
        reduced = _keep(rows, keep) @ a.T
        for result, part, b, scaling in zip(
            results, torch.split(reduced, ctx.ranks, 1), bs, ctx.scalings, strict=True
        ):
            result.addmm_(part, b.T, alpha=scaling)
        ctx.mark_dirty(*results)
        kept = rows if gate is None else None
        ctx.save_for_backward(kept, gate, up, keep, reduced, a, *bs)
        ctx.dtype = x.dtype
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, gate, up, keep, reduced, a, *bs = ctx.saved_tensors
        if rows is None:
            rows = swiglu(Gated(gate, up)).reshape(-1, a.shape[1]).to(a.dtype)
        scaled = list(
            zip(gradients, bs, ctx.scalings, torch.split(reduced, ctx.ranks, 1), strict=True)
        )
        parts = [gradient @ (b * scaling) for gradient, b, scaling, _ in scaled]
        of_reduced = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        of_a = torch.split((of_reduced.T @ _keep(rows, keep)).float(), ctx.ranks)
        of_b = [(gradient.T @ part).float() * scaling for gradient, _, scaling, part in scaled]
        of_x = _keep(of_reduced @ a, keep).to(ctx.dtype)
        return of_x, None, None, None, None, *gradients, *of_a, *of_b


def draw_mask(rows: Tensor, dropout: float) -> Tensor:
    """Return which entries are kept, a byte each, `[rows, in]`, of the shape of `rows`.

    On a CPU, cutting random words is several times as fast as `bernoulli_`, and numbers that are
    0 or 1 are several times as fast as booleans, to write and to multiply by. (`torch.compile`
    knows the operation `randint`, and no `random_` with a range.)
    """
    if rows.device.type != "cpu":
        return torch.empty_like(rows, dtype=torch.bool).bernoulli_(1 - dropout)
    words = torch.randint(-(2**63), 2**63 - 1, ((rows.numel() + 3) // 4,))
    draws = words.view(torch.int16)[: rows.numel()].view(rows.shape)
    keep = torch.empty(rows.shape, dtype=torch.int8)
    return torch.ge(draws, round(dropout * DRAWS) - DRAWS // 2, out=keep)


def _keep(rows: Tensor, keep: Tensor | None) -> Tensor:
    return rows if keep is None else rows * keep
