"""A layer that reads and writes always the same memory, as work that can be captured.

One that is computed again in its backward draws its dropout when it is run, and again when it is
run anew. Both begin from the same random state, so the mask is the same, and it is that of a layer
that is run as it is.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lit_sft.cuda import capturing, differentiate_here, renew_random_state, trying_out


class Replayed(Protocol):
    """Work that can be done over and over, such as a `torch.cuda.CUDAGraph`."""

    def replay(self) -> None:
        """Do it."""

    def pool(self) -> Any:
        """Return the memory that it is done in, for others to share; None is all there is."""


class FixedLayer:
    """A layer, and where it reads and writes.

    Args:
        run: Runs it.
        into: `[1, tokens, hidden]`, what it is run on.
        out: Likewise, what it gives.
        slope: Likewise: the gradient by what it gives, and then by what it is run on.
        trained: Its parameters that have a gradient to add to.
        keeps: Whether it keeps what its backward needs; otherwise it is computed again.
        on_view: Whether it is run on a view, as FSDP runs a layer. What was compiled for the one is
            compiled anew for the other.
        stream: To capture it on; None on a CPU.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Any],
        into: Tensor,
        out: Tensor,
        slope: Tensor,
        trained: Sequence[nn.Parameter],
        keeps: bool = False,
        on_view: bool = False,
        stream: Any = None,
    ) -> None:
        self._run_layer, self._trained, self._keeps = run, list(trained), keeps
        self._on_view, self._stream = on_view, stream
        self._into, self._out, self._slope = into, out, slope
        self._kept: tuple[Tensor, GradientEdge] | None = None

    def capture_forward(self, pool: Any, dice: "Dice") -> Replayed:
        """Return the forward as a graph; on a CPU, which has none, as it is.

        What it keeps stands in the memory of graphs until its backward has been captured or run.

        Args:
            pool: The memory of graphs that were captured before, or None.
            dice: Where dropout is drawn from.
        """
        if self._stream is None:
            return _Plain(self.forward)
        before, slope = dice.read_all(), self._slope.clone()
        self._slope.zero_()
        with _without_autocast_cache("cuda"), trying_out(self._stream, pool):
            self.forward()
            self.backward()  # the gradients of a zero slope are zero
        self._slope.copy_(slope)
        graph = self._capture(self.forward, pool)
        dice.write_all(before)
        return graph

    def capture_backward(self, pool: Any, dice: "Dice") -> Replayed:
        """Return the backward likewise; the forward has been captured before.

        Args:
            pool: As for `capture_forward`.
            dice: Likewise.
        """
        if self._stream is None:
            return _Plain(self.backward)
        before = dice.read_all()
        graph = self._capture(self.backward, pool)
        dice.write_all(before)
        return graph

    def _capture(self, work: Callable[[], None], pool: Any) -> Replayed:
        graph = torch.cuda.CUDAGraph()
        with _without_autocast_cache("cuda"), capturing(graph, pool, self._stream):
            work()
        return graph

    def forward(self) -> None:
        """Run the layer, as in training: what computes otherwise without gradients does not."""
        leaf, out = self._run()
        self._out.copy_(out.detach())
        # Its backward asks for where it comes from alone, and what it gave stands in `_out` now.
        self._kept = (leaf, get_gradient_edge(out)) if self._keeps else None

    def backward(self) -> None:
        """Add to the gradients of its parameters, and write the slope."""
        if self._kept:
            leaf, edge = self._kept
            self._kept = None
        else:
            leaf, out = self._run()
            edge = get_gradient_edge(out)
        with differentiate_here():
            of_input, *found = torch.autograd.grad(
                [edge], [leaf, *self._trained], [self._slope], materialize_grads=True
            )
        self._slope.copy_(of_input)
        for parameter, gradient in zip(self._trained, found, strict=True):
            if parameter.grad is None:
                raise RuntimeError("a trained parameter has no gradient to add to")
            parameter.grad += gradient

    def _run(self) -> tuple[Tensor, Tensor]:
        leaf = self._into.detach().requires_grad_()
        with torch.enable_grad():
            out = self._run_layer(leaf.view_as(leaf) if self._on_view else leaf)
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
