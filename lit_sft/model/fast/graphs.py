"""The layers of a pass as two CUDA graphs, forward and backward, replayed for what fits them.

Launched one by one, the kernels of a step wait for Python: on one H200, a window of 2,800 tokens of
Llama-3.2-3B takes 114 ms with compiled layers, and 76 ms when they are replayed.

A graph has fixed shapes. A packed batch fits any size above its own: the tokens behind it are one
more row, which sees itself alone and carries no loss, and rows that are missing are empty. The head
is in neither graph. Its size is the number of supervised tokens, and it has few kernels, which are
launched while the device is busy with the layers before them.

What dropout draws in a replay is decided by the random state at that moment, as without a graph.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_sft.cuda import (
    capturing,
    make_capture_stream,
    renew_random_state,
    trying_out,
    warn_of_no_graphs,
)
from lit_sft.types import Batch

SIZE_STEP = 256
"""Tokens from one size to the next. Half of it, 5 % of a window of 2,800, is run for nothing; each
size is captured when it first occurs, which takes half a second."""

Decode = Callable[[Batch], Tensor]
"""From a packed batch to its last hidden states, `[1, tokens, hidden]`."""


class Size(NamedTuple):
    """What the shapes of a graph depend on."""

    tokens: int
    rows: int
    """Whether there are so many or fewer."""


def choose_size(batch: Batch, step: int) -> Size:
    """Return the next size that a packed batch fits, in whole steps of that many tokens."""
    tokens, rows = batch["input_ids"].shape[1], len(batch["cu_seq_lens"]) - 1
    return Size(-(-tokens // step) * step, 8 * (rows // 8 + 1))


class GraphedDecoder:
    """Stands for `decode` in training, on CUDA.

    Where a size cannot be captured, such as for want of memory, there are no graphs from then on,
    which is said. Batches keep the shapes that they had, and so the same bits.

    Args:
        decode: Runs the layers; of the batch, it is given `input_ids`, `position_ids`,
            `cu_seq_lens` and `max_length`.
        parameters: The trained ones.
        gradient: Of all of them, end to end, `[elements]`: a backward pass adds to it, in place.
        max_length: Of a row, in tokens.
    """

    def __init__(
        self,
        decode: Decode,
        parameters: Sequence[nn.Parameter],
        gradient: Tensor,
        max_length: int,
    ) -> None:
        self._decode, self._parameters, self._max_length = decode, list(parameters), max_length
        self._gradient = gradient
        self._step = min(SIZE_STEP, max_length)
        self._graphs: dict[Size, _Graphs] = {}
        self.is_capturing = True
        self._pool: Any = None
        self._stream = make_capture_stream(gradient.device)
        self._anchor = torch.zeros((), device=gradient.device, requires_grad=True)

    def __call__(self, batch: Batch) -> Tensor:
        """Return the last hidden states, `[1, tokens, hidden]`, with a gradient."""
        tokens, size = batch["input_ids"].shape[1], choose_size(batch, self._step)
        if self.is_capturing and size not in self._graphs:
            self._try_to_capture(size)
        if not self.is_capturing:
            return self._decode(fit(batch, size, self._max_length))[:, :tokens]
        graphs = self._graphs[size]
        write(batch, graphs.batch)
        hidden: Tensor = _Replay.apply(self._anchor, graphs, tokens)
        return hidden

    def _try_to_capture(self, size: Size) -> None:
        device = self._anchor.device
        states = torch.cuda.get_rng_state(device)
        before = self._gradient.clone()
        try:
            self._graphs[size] = self._capture(size)
        except RuntimeError as error:  # also torch.OutOfMemoryError
            self.is_capturing = False
            self._graphs.clear()
            renew_random_state(device)
            warn_of_no_graphs(f"passes of {size.tokens:,} tokens", str(error))
        finally:
            self._gradient.copy_(before)
            torch.cuda.set_rng_state(states, device)

    def _capture(self, size: Size) -> "_Graphs":
        """Run both passes once as they are, which compiles what is to be compiled; then capture."""
        device = self._anchor.device
        batch = make_empty(size, self._max_length, device)
        torch.clear_autocast_cache()  # a weight that was cast before would be cast no more
        with trying_out(self._stream):
            hidden = self._decode(batch)
            slope = torch.zeros_like(hidden)
            self._add_gradients(hidden, slope)
            del hidden
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with capturing(forward, self._pool, self._stream):
            hidden = self._decode(batch)
        self._pool = forward.pool()
        with capturing(backward, self._pool, self._stream):
            self._add_gradients(hidden, slope)
        return _Graphs(forward, backward, batch, hidden.detach(), slope)

    def _add_gradients(self, hidden: Tensor, slope: Tensor) -> None:
        """Add to the gradient, all at once; autograd would, one by one.

        Args:
            hidden: `[1, tokens, hidden]`, with its graph.
            slope: Of that shape, the gradient of the loss by it.
        """
        found = torch.autograd.grad(hidden, self._parameters, slope, materialize_grads=True)
        self._gradient += torch.cat([gradient.flatten() for gradient in found])


class _Graphs(NamedTuple):
    """Both passes of a size, and what they read and write."""

    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    batch: Batch
    hidden: Tensor
    """`[1, tokens, hidden]`, written by `forward`."""
    slope: Tensor
    """Likewise, read by `backward`: the gradient of the loss."""


class _Replay(torch.autograd.Function):
    """The hidden states of a pass that was captured, `[1, tokens, hidden]`, and their gradient."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, graphs: _Graphs, tokens: int) -> Tensor:
        ctx.graphs = graphs
        graphs.forward.replay()
        return graphs.hidden[:, :tokens]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        (gradient,), graphs = gradients, ctx.graphs
        tokens = gradient.shape[1]
        graphs.slope[:, :tokens].copy_(gradient)
        graphs.slope[:, tokens:].zero_()
        graphs.backward.replay()
        return None, None, None


def make_empty(size: Size, max_length: int, device: torch.device) -> Batch:
    """Return a packed batch of a size that holds rows of padding alone.

    Args:
        size: How many tokens and rows.
        max_length: Of a row that is to be written into it, in tokens.
        device: Where it is.
    """
    places = torch.arange(size.tokens, device=device)
    starts = torch.arange(size.rows + 1, device=device) * max_length
    return Batch(
        input_ids=torch.zeros_like(places)[None],
        labels=torch.zeros_like(places)[None],
        cu_seq_lens=starts.clamp(max=size.tokens).to(torch.int32),
        position_ids=(places % max_length)[None],
        max_length=max_length,
        num_tokens=size.tokens,
        num_supervised=0,
    )


def fit(batch: Batch, size: Size, max_length: int) -> Batch:
    """Return a packed batch made up to a size.

    Args:
        batch: Of fewer rows, and of as many tokens or fewer.
        size: What it is to be.
        max_length: Of a row, in tokens; the padding is shorter.
    """
    padded = make_empty(size, max_length, batch["input_ids"].device)
    write(batch, padded)
    return padded


def write(batch: Batch, into: Batch) -> None:
    """Write the tokens and the boundaries of a packed batch into a larger one, in place.

    What is behind them there becomes one row of token 0, and empty rows.

    Args:
        batch: Of fewer rows, and of as many tokens or fewer.
        into: Its labels and counts stay.
    """
    tokens, rows = batch["input_ids"].shape[1], len(batch["cu_seq_lens"])
    whole = into["input_ids"].shape[1]
    into["input_ids"][:, :tokens].copy_(batch["input_ids"])
    into["input_ids"][:, tokens:].zero_()
    into["position_ids"][:, :tokens].copy_(batch["position_ids"])
    tail = torch.arange(whole - tokens, device=into["position_ids"].device)
    into["position_ids"][0, tokens:].copy_(tail)
    into["cu_seq_lens"][:rows].copy_(batch["cu_seq_lens"])
    into["cu_seq_lens"][rows:].fill_(whole)
