"""A layer that is computed again in its backward pass, as work that can be captured.

It draws its dropout when it is run, and again when it is run anew. Both begin from the same random
state, so the mask is the same, and it is that of a layer that is run as it is.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lit_sft.cuda import capturing, renew_random_state, trying_out


class Replayed(Protocol):
    """Work that can be done over and over, such as a `torch.cuda.CUDAGraph`."""

    def replay(self) -> None:
        """Do it."""

    def pool(self) -> Any:
        """Return the memory that it is done in, for others to share; None is all there is."""


class RecomputedLayer(NamedTuple):
    """A layer, and where it reads and writes.

    It reads and writes always the same memory, as what is captured does.
    """

    run: Callable[[Tensor], Any]
    into: Tensor
    """`[1, tokens, hidden]`, what it is run on."""
    out: Tensor
    """Likewise, what it gives."""
    slope: Tensor
    """Likewise: the gradient by what it gives, and then by what it is run on."""
    trained: list[nn.Parameter]

    def capture(self, pool: Any, dice: "Dice") -> tuple[Replayed, Replayed]:
        """Return both passes as graphs; on a CPU, which has none, as they are.

        Args:
            pool: The memory of graphs that were captured before, or None.
            dice: Where dropout is drawn from.
        """
        device = self.into.device
        if device.type != "cuda":
            return _Plain(self.forward), _Plain(self.backward)
        before = dice.read_all()
        slope = self.slope.clone()
        self.slope.zero_()
        graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with _without_autocast_cache(device.type):
            with trying_out(device):  # the gradients of a zero slope are zero
                self.forward()
                self.backward()
            for graph, run in zip(graphs, (self.forward, self.backward), strict=True):
                with capturing(graph, pool, device):
                    run()
                pool = graph.pool()
        self.slope.copy_(slope)
        dice.write_all(before)
        return graphs

    def forward(self) -> None:
        """Run the layer, as in training: what computes otherwise without gradients does not."""
        self.out.copy_(self._run()[1].detach())

    def backward(self) -> None:
        """Run it again; then add to the gradients of its parameters, and write the slope."""
        leaf, out = self._run()
        of_input, *found = torch.autograd.grad(
            out, [leaf, *self.trained], self.slope, materialize_grads=True
        )
        self.slope.copy_(of_input)
        for parameter, gradient in zip(self.trained, found, strict=True):
            if parameter.grad is None:
                raise RuntimeError("a trained parameter has no gradient to add to")
            parameter.grad += gradient

    def _run(self) -> tuple[Tensor, Tensor]:
        leaf = self.into.detach().requires_grad_()
        with torch.enable_grad():
            out = self.run(leaf)
        if not isinstance(out, Tensor) or out.dtype != leaf.dtype:
            got = out.dtype if isinstance(out, Tensor) else type(out).__name__
            raise RuntimeError(f"a layer makes {got} of {leaf.dtype}")
        return leaf, out


class _Plain(NamedTuple):
    """Work as it is."""

    replay: Callable[[], None]

    def pool(self) -> None:
        """Return None."""


class Dice:
    """The random state of a device, and how far it is in the numbers of its seed.

    Args:
        device: Where dropout is drawn.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._is_cuda = device, device.type == "cuda"

    def read(self) -> Any:
        """Return how far it is."""
        return self._generator().get_offset() if self._is_cuda else torch.get_rng_state()

    def write(self, state: Any) -> None:
        """Go to where `read` was."""
        if self._is_cuda:
            self._generator().set_offset(state)
        else:
            torch.set_rng_state(state)

    def read_all(self) -> Tensor:
        """Return the whole state."""
        return torch.cuda.get_rng_state(self._device) if self._is_cuda else torch.get_rng_state()

    def write_all(self, state: Tensor) -> None:
        """Take a whole state back."""
        if self._is_cuda:
            torch.cuda.set_rng_state(state, self._device)
        else:
            torch.set_rng_state(state)

    def renew(self) -> None:
        """Take another state: one that a capture has broken off stays in it."""
        if self._is_cuda:
            renew_random_state(self._device)

    def _generator(self) -> Any:
        return torch.cuda.default_generators[self._device.index or 0]


def _without_autocast_cache(kind: str) -> AbstractContextManager[Any]:
    """Cast weights anew each time: a cast that is kept would be that of the first step forever."""
    if not torch.is_autocast_enabled(kind):
        return nullcontext()
    dtype = torch.get_autocast_dtype(kind)
    return torch.autocast(kind, dtype=dtype, cache_enabled=False)
