"""What layers are given besides their input, in memory that stays where it is."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PLAIN = (bool, int, float, str, torch.dtype, torch.device)
"""What a layer may be given besides tensors: it is the same in every pass."""


class UnfitLayersError(RuntimeError):
    """A model runs its layers in a way that is not known here."""


class FixedInputs:
    """Tensors that stand for those that the layers of a pass are given; most are given to all."""

    def __init__(self) -> None:
        self._fixed: dict[int, tuple[Tensor, Tensor]] = {}
        self._copies: list[Tensor] = []

    def fix(self, given: Any) -> Any:
        """Return what a layer is given, with tensors of our own in the place of all tensors."""

        def own(tensor: Tensor) -> Tensor:
            if tensor.requires_grad:
                raise UnfitLayersError("a layer is given more than its input that has a gradient")
            if id(tensor) not in self._fixed:
                copy = tensor.detach().clone()
                self._fixed[id(tensor)] = tensor, copy
                self._copies.append(copy)
            return self._fixed[id(tensor)][1]

        return _map_tensors(given, own)

    def renew(self, given: Any, is_first: bool) -> None:
        """Copy the tensors that a layer is given now into ours, those of other layers once.

        Args:
            given: Of the same structure as when the layer was captured.
            is_first: Whether the pass begins with it.
        """
        if is_first:
            self._fixed.clear()

        def copy(tensor: Tensor) -> Tensor:
            if id(tensor) not in self._fixed:
                into = self._copies[len(self._fixed)]
                self._fixed[id(tensor)] = tensor, into.copy_(tensor)
            return tensor

        _map_tensors(given, copy)


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return tuples, lists and dicts of the same structure, with another tensor for each."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (tuple, list):
        return type(value)(_map_tensors(x, function) for x in value)
    if type(value) is dict:
        return {name: _map_tensors(x, function) for name, x in value.items()}
    if value is not None and not isinstance(value, PLAIN):
        raise UnfitLayersError(f"a layer is given a {type(value).__name__}")
    return value
