"""Many small parameters as one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FlatParameters:
    """A buffer of which parameters and their gradients are views.

    An optimizer updates it with one kernel rather than one a tensor, and bitsandbytes pages its
    state, which it does from 100,000 elements on. Names and shapes of the parameters stay.

    Args:
        *groups: Parameters of one dtype and device, such as those that share a learning rate.
    """

    def __init__(self, *groups: Sequence[nn.Parameter]) -> None:
        parameters = [parameter for group in groups for parameter in group]
        joined = torch.cat([parameter.detach().flatten() for parameter in parameters])
        self.parameter = nn.Parameter(joined)
        """All of them, `[elements]`: what a gradient is clipped by."""
        self.gradient: Tensor = torch.zeros_like(joined)
        """Of all of them, `[elements]`; it stays where it is."""
        self.members = parameters
        """The parameters, in the order of the buffer."""
        totals = [sum(parameter.numel() for parameter in group) for group in groups]
        self.parts = [nn.Parameter(part) for part in torch.split(joined, totals)]
        """A view of each group, `[elements]`: what the optimizer is given."""
        self._gradients = torch.split(self.gradient, totals)
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, value in zip(parameters, torch.split(joined, sizes), strict=True):
            parameter.data = value.view_as(parameter)
        self._views = [
            gradient.view_as(parameter)
            for parameter, gradient in zip(
                parameters, torch.split(self.gradient, sizes), strict=True
            )
        ]
        self.zero_grad()

    def collect(self) -> None:
        """Take in the gradients of parameters whose `grad` somebody has set to None meanwhile."""
        for parameter, view in zip(self.members, self._views, strict=True):
            if parameter.grad is not view:
                view.copy_(torch.zeros_like(view) if parameter.grad is None else parameter.grad)
                parameter.grad = view

    def zero_grad(self) -> None:
        """Zero all gradients in place."""
        self.parameter.grad = self.gradient.zero_()
        for part, gradient in zip(self.parts, self._gradients, strict=True):
            part.grad = gradient
        for parameter, view in zip(self.members, self._views, strict=True):
            parameter.grad = view
