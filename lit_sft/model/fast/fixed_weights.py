"""Weights that come and go, in memory that stays where it is."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from lit_sft.model.fast.fixed_inputs import UnfitLayersError


class _Place(NamedTuple):
    """Where a module has a parameter."""

    module: nn.Module
    name: str


class FixedWeights:
    """Memory for the weights of one layer, which its graphs read in place of those gathered.

    A layer of FSDP has its weights while it runs, each time elsewhere. All layers have the same
    shapes, and run one after the other, so that one layer's room is enough. What is whole on every
    rank stays where it is, and so do all weights of a model that is not sharded.

    Args:
        layers: Of a model, in order, before one of them runs.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._places = [_find_sharded(layer) for layer in layers]
        self._fixed: list[nn.Parameter] = []

    def take(self, index: int) -> None:
        """Copy the weights that a layer has been given, where it is to run.

        Args:
            index: Of the layer.
        """
        gathered = [getattr(place.module, place.name) for place in self._places[index]]
        if not self._fixed:
            self._fixed = [nn.Parameter(x.detach().clone(), requires_grad=False) for x in gathered]
        kinds = [[(x.shape, x.dtype) for x in weights] for weights in (gathered, self._fixed)]
        if kinds[0] != kinds[1]:
            raise UnfitLayersError("its layers have weights of different shapes")
        for own, given in zip(self._fixed, gathered, strict=True):
            # One by one: `torch._foreach_copy_` came to a quarter of the rate of an H200's memory.
            # Through `data`: what was kept of ours for a backward is not to be read before.
            own.data.copy_(given)

    def bind(self, index: int, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that runs a layer on this memory.

        Args:
            index: Of the layer.
            run: Runs it.
        """
        places = self._places[index]

        def call(*args: object, **kwargs: object) -> Any:
            before = [getattr(place.module, place.name) for place in places]
            try:
                _put(places, self._fixed)
                return run(*args, **kwargs)
            finally:
                _put(places, before)

        return call if places else run


def _find_sharded(layer: Any) -> list[_Place]:
    if hasattr(layer, "reshard"):
        layer.reshard()  # what it has been given would look like weights of its own
    return [
        _Place(module, name)
        for module in layer.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if hasattr(parameter, "device_mesh")
    ]


def _put(places: Sequence[_Place], weights: Sequence[nn.Parameter]) -> None:
    for place, weight in zip(places, weights, strict=True):
        setattr(place.module, place.name, weight)
