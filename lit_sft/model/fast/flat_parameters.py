"""Many small parameters as one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_sft.errors import require


def require_same_layout(optimizer_states: Sequence[dict[str, Any]], flat: bool) -> None:
    """Raise `InputError` if a saved optimizer does not know the parameters in the same form.

    Args:
        optimizer_states: Of a checkpoint.
        flat: Whether this run has one buffer for all.
    """
    for state in optimizer_states:
        was_flat = sum(len(group["params"]) for group in state["param_groups"]) == 1
        require(
            was_flat == flat,
            f"model.speed.flat_optimizer: was {was_flat} in the checkpoint, whose optimizer state "
            f"fits no other form; set it to {was_flat}",
        )


def require_same_order(saved: Sequence[str], now: Sequence[str]) -> None:
    """Raise `InputError` if a saved optimizer knows the same parameters in another order.

    Its state has no names: a moment of one parameter would be taken for that of another.

    Args:
        saved: The names of its parameters, in its order.
        now: Those of this run, in the order in which an optimizer is given them.
    """
    differing = [f"{now[i]}, was {name}" for i, name in enumerate(saved) if name != now[i]]
    require(
        not differing,
        f"the checkpoint's optimizer has its parameters in another order: at {len(differing)} of "
        f"{len(now)} places is another one, such as {'; '.join(differing[:2])}. Go on with the "
        "releases of peft and transformers that it was made with",
    )


class FlatParameters:
    """A buffer of which parameters and their gradients are views.

    An optimizer updates it with one kernel rather than one a tensor, and bitsandbytes pages its
    state, which it does from 100,000 elements on. Names and shapes of the parameters stay.

    Args:
        parameters: Of one dtype and device.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        joined = torch.cat([parameter.detach().flatten() for parameter in parameters])
        self.parameter = nn.Parameter(joined)
        """What the optimizer is given, `[elements]`."""
        self._gradient: Tensor = torch.zeros_like(joined)
        self._parameters = list(parameters)
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, value in zip(parameters, joined.split(sizes), strict=True):
            parameter.data = value.view_as(parameter)
        self._views = [
            gradient.view_as(parameter)
            for parameter, gradient in zip(parameters, self._gradient.split(sizes), strict=True)
        ]
        self.zero_grad()

    def collect(self) -> None:
        """Take in the gradients of parameters whose `grad` somebody has set to None meanwhile."""
        for parameter, view in zip(self._parameters, self._views, strict=True):
            if parameter.grad is not view:
                view.copy_(torch.zeros_like(view) if parameter.grad is None else parameter.grad)
                parameter.grad = view

    def zero_grad(self) -> None:
        """Zero all gradients in place."""
        self.parameter.grad = self._gradient.zero_()
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.grad = view
