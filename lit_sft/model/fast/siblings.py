"""Adapted layers that read one input, computed together: q, k and v; gate, up and then down.

A model calls its layers one by one. The first that is called with an input computes what the others
will give for it, and they hand it out. Which input it is, is a matter of the very tensor: a layer
that is called with another one computes for itself.
"""

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from lit_sft.model.fast.lora import forward_alone, is_plain_lora, read_update, run_adapted
from lit_sft.model.fast.swiglu import Gated, swiglu

NAMES = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("gate_proj", "up_proj"))
"""Of layers that stand beside each other and read one input, in nearly all models."""


class Siblings:
    """Layers that are computed in one call.

    Args:
        layers: Plain LoRA layers of one input, by whatever names.
    """

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.is_together = True
        self._input: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}

    def part_unless_used(self) -> None:
        """Compute each alone from now on if the model has not asked for what was made for it.

        A model may leave a layer out, or give each an input of its own; then this is wasted.
        """
        self.is_together = not self._waiting
        self._forget()

    def compute(self, place: int, x: Tensor) -> Tensor:
        """Return what one of the layers gives.

        Args:
            place: Of the layer among them.
            x: `[..., in]`.
        """
        if self._input is x and place in self._waiting:
            result = self._waiting.pop(place)
            if not self._waiting:
                self._forget()
            return result
        found = [read_update(layer) for layer in self.layers]
        updates = [update for update in found if update is not None]
        if len(updates) < len(found) or len({update.dropout for update in updates}) > 1:
            return forward_alone(self.layers[place], x)
        results = run_adapted(self.layers, x, updates)
        self._input = x
        self._waiting = {i: result for i, result in enumerate(results) if i != place}
        return results[place]

    def _forget(self) -> None:
        self._input = None
        self._waiting = {}


def fuse_siblings(model: nn.Module) -> None:
    """Let adapted layers of one input be computed together, after `fuse_lora`.

    Args:
        model: Its parameters and their names stay what they are.
    """
    for parent in list(model.modules()):
        for names in NAMES:
            _join([layer for name in names if is_plain_lora(layer := getattr(parent, name, None))])
        mlp = [getattr(parent, f"{name}_proj", None) for name in ("gate", "up", "down")]
        is_own = "forward" not in vars(parent)
        if is_own and all(map(is_plain_lora, mlp)) and computes_swiglu(parent):
            parent.forward = MethodType(_forward_gated, parent)


def _join(layers: list[Any]) -> None:
    """Let layers be computed together, if there are two that are alike."""
    if len(layers) < 2 or len({_describe(layer) for layer in layers}) > 1:
        return
    siblings = Siblings(layers)
    for place, layer in enumerate(layers):
        layer.siblings = siblings
        layer.forward = MethodType(_make_forward(siblings, place), layer)


def part_unused(model: nn.Module) -> None:
    """Take apart what a model has turned out not to call with one input.

    Args:
        model: That has been run, with gradients, since `fuse_siblings`.
    """
    for siblings in set(_find_siblings(model)):
        siblings.part_unless_used()


def _find_siblings(model: nn.Module) -> Iterator[Siblings]:
    for module in model.modules():
        siblings = getattr(module, "siblings", None)
        if isinstance(siblings, Siblings):
            yield siblings


def _describe(layer: Any) -> tuple[object, ...]:
    """Return what must be the same for layers to be computed together."""
    base = layer.get_base_layer()
    return type(base), base.in_features, base.weight.dtype, base.weight.device


def _make_forward(siblings: Siblings, place: int) -> Callable[..., Tensor]:
    def forward(layer: object, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if args or kwargs or not siblings.is_together or not torch.is_grad_enabled():
            return forward_alone(layer, x, *args, **kwargs)
        return siblings.compute(place, x)

    return forward


def computes_swiglu(mlp: nn.Module) -> bool:
    """Return whether a module computes `down_proj(silu(gate_proj(x)) * up_proj(x))`, and no more.

    Its own forward says so, which is run here with three functions for its layers.
    """
    x = torch.linspace(-3, 3, 8)
    stub: Any = _Stub(mlp)
    try:
        own = type(mlp).forward(stub, x)
    except Exception:  # of any code, which may ask for what a stub is not
        return False
    ours = stub.down_proj(swiglu(Gated(stub.gate_proj(x), stub.up_proj(x))))
    return isinstance(own, Tensor) and own.shape == ours.shape and torch.allclose(own, ours)


class _Stub:
    """An MLP whose layers are functions of a number."""

    def __init__(self, mlp: nn.Module) -> None:
        self._mlp = mlp
        self.gate_proj = lambda x: 2 * x + 1
        self.up_proj = torch.cos
        self.down_proj = lambda x: x * (3 - x)

    def __getattr__(self, name: str) -> object:
        return getattr(self._mlp, name)


def _forward_gated(mlp: Any, x: Tensor) -> Tensor:
    """Stand for the forward of an MLP that `computes_swiglu`."""
    is_adapted = hasattr(mlp.down_proj, "lora_A")  # until an adapter is merged and unloaded
    update = read_update(mlp.down_proj) if is_adapted else None
    if update is None or not torch.is_grad_enabled():
        forwarded: Tensor = type(mlp).forward(mlp, x)
        return forwarded
    gated = Gated(mlp.gate_proj(x), mlp.up_proj(x))
    product = swiglu(gated)
    (result,) = run_adapted([mlp.down_proj], product, [update], gated)
    return result
