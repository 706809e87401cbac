"""Layers as CUDA graphs of their own: the forward of each, and all its backward.

What is kept of a pass is the input of every layer, as with checkpoints of activations (Chen et al.,
2016); what a layer that is computed again makes besides lies in memory that all of them share, so
that a pass of any depth takes that of one. Launched one by one, the kernels of such a pass wait for
Python: of Llama-3.2-3B in four bits, 2,000 tokens a second were trained so on an H100, and 9,000
and more by graphs on an H200. `docs/GPU.md` has the figures. Layers whose weights are gathered from
other ranks run so, too, between one gather and the next.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_sft.cuda import count_unused_bytes, make_capture_stream, warn_of_no_graphs
from lit_sft.model.fast.captured_pass import CapturedPass, PassMemory
from lit_sft.model.fast.fixed_inputs import UnfitLayersError
from lit_sft.model.fast.fixed_layer import Dice, FixedLayer, Replayed
from lit_sft.model.fast.fixed_weights import FixedWeights
from lit_sft.model.fast.graphs import SIZE_STEP, Decode, Size, choose_size, fit, make_empty, write
from lit_sft.model.fast.memory import exchange_call, recompute_from_outside
from lit_sft.model.figures import GIB
from lit_sft.types import Batch

HEAD_BYTES = GIB
"""For the logits of a chunk, in float32 and rounded, behind layers that keep what they need."""


class LayerGraphs:
    """Stands for `decode` in training where layers are replayed one by one.

    Where a layer cannot be captured, such as for want of memory, there are no graphs from then on,
    which is said; the layers of that pass that have run stay as they are, so that none is run twice
    of those that other ranks run as well. On a CPU, which has no graphs, the same work is done as
    it is.

    Args:
        decode: Runs a model; of the batch, it is given `input_ids`, `position_ids`, `cu_seq_lens`
            and `max_length`.
        layers: Those of the model, in order.
        max_length: Of a row, in tokens.
        kept: The layers, by their numbers, that keep all that their backward needs; the others are
            computed again.
    """

    def __init__(
        self,
        decode: Decode,
        layers: Sequence[GradientCheckpointingLayer],
        max_length: int,
        kept: Collection[int] = (),
    ) -> None:
        self._decode, self._layers, self._max_length = decode, list(layers), max_length
        self._kept = frozenset(kept)
        self._step = min(SIZE_STEP, max_length)
        self._weights = FixedWeights(self._layers)
        self._run_layers: list[Callable[..., Any]] = []
        self._passes: dict[Size, CapturedPass] = {}
        self._memory: PassMemory | None = None
        self._stream: Any = None
        self._current: CapturedPass | None = None
        self._anchor = torch.zeros((), requires_grad=True)  # a frozen embedding has no gradient
        self.is_capturing = True
        for index, layer in enumerate(self._layers):
            if layer.gradient_checkpointing:  # to set it would be news to what is compiled
                layer.gradient_checkpointing = False
            run = exchange_call(layer)
            self._run_layers.append(run)
            exchange_call(layer, self._stand_for(index, run))

    def __call__(self, batch: Batch) -> Tensor:
        """Return the last hidden states, `[1, tokens, hidden]`, with a gradient."""
        if "cu_seq_lens" not in batch:  # of a rank that has no rows
            if not self.is_capturing:  # what is computed again has to be what it was
                return self._decode(batch)
            with torch.compiler.set_stance("force_eager"):  # of a token there is nothing to compile
                return self._decode(batch)
        tokens, size = batch["input_ids"].shape[1], choose_size(batch, self._step)
        if self.is_capturing:
            return self._run(size, batch)[:, :tokens]
        return self._decode(fit(batch, size, self._max_length))[:, :tokens]

    def _run(self, size: Size, batch: Batch) -> Tensor:
        """Run a pass, capturing layer after layer on the way where its size is new."""
        if self._memory and size.tokens > self._memory.most:
            # Memory for the longest pass that may come would lie idle in nearly all of them. Graphs
            # know where theirs is: with longer memory, all are captured anew.
            if self._stream is not None:  # replays are on another, which the allocator knows not of
                torch.cuda.synchronize(self._stream.device)
            self._end_all()
        if size not in self._passes:
            device = batch["input_ids"].device
            self._passes[size] = CapturedPass(
                make_empty(size, self._max_length, device), Dice(device)
            )
        current = self._current = self._passes[size]
        current.ran = 0
        write(batch, current.batch)
        try:
            hidden = self._decode(current.batch)
        finally:
            self._current = None
        if self.is_capturing and current.ran < len(self._layers):
            self._give_up(current, f"{current.ran} of {len(self._layers)} layers are run in a pass")
        if self.is_capturing and not current.backwards:
            self._try(current, lambda: self._capture_backwards(current))
        return hidden

    def _stand_for(self, index: int, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(hidden: Tensor, *args: object, **kwargs: object) -> Any:
            current = self._current
            if current is None or not torch.is_grad_enabled() or not self.is_capturing:
                return run(hidden, *args, **kwargs)
            apply: Callable[..., Tensor] = _Captured.apply
            given = hidden, self._anchor, self, current, index, args, kwargs
            found = self._try(current, lambda: apply(*given))
            return run(hidden, *args, **kwargs) if found is None else found

        return call

    def _try(self, current: CapturedPass, do: Callable[[], Tensor | None]) -> Tensor | None:
        """Return what is done, or None where it fails in a pass of a new size: then, give up."""
        before = None if current.backwards else current.dice.read_all()
        try:
            return do()
        except Exception as error:  # torch.OutOfMemoryError, or of any code that is captured
            if before is None and not isinstance(error, UnfitLayersError):
                raise
            reason = str(error) or type(error).__name__
        # Behind the error, which would hold all memory of what failed.
        self._give_up(current, reason)
        if before is not None:
            current.dice.renew()
            current.dice.write_all(before)
        return None

    def _give_up(self, current: CapturedPass, reason: str) -> None:
        self.is_capturing = False
        current.forget_graphs()
        self._end_all(current)
        for layer, run in zip(self._layers, self._run_layers, strict=True):
            exchange_call(layer, run)
        recompute_from_outside(x for i, x in enumerate(self._layers) if i not in self._kept)
        warn_of_no_graphs(f"layers of {current.batch['input_ids'].shape[1]:,} tokens", reason)

    def run_forward(
        self, current: CapturedPass, index: int, hidden: Tensor, args: Any, kwargs: Any
    ) -> Tensor:
        """Run a layer; return what it gives, `[1, tokens, hidden]`.

        Args:
            current: The pass.
            index: Of the layer.
            hidden: Its input, of that shape.
            args: What else it is given.
            kwargs: Likewise.
        """
        if index != current.ran:
            raise UnfitLayersError("its layers are not run once each, in order")
        memory = current.memory = self._find_memory(hidden)
        into, out = (memory.find_input(i, hidden.shape[1]) for i in (index, index + 1))
        if into.data_ptr() != hidden.data_ptr():
            into.copy_(hidden)
        self._weights.take(index)
        if index == len(current.layers):
            self._capture(current, index, (into, out), (args, kwargs))
        else:
            current.others.renew((args, kwargs), is_first=index == 0)
        current.offsets[index] = current.dice.read()
        current.forwards[index].replay()
        current.ran += 1
        return out

    def _capture(
        self, current: CapturedPass, index: int, ends: tuple[Tensor, Tensor], given: Any
    ) -> None:
        args, kwargs = current.others.fix(given)
        run, memory = self._weights.bind(index, self._run_layers[index]), current.find_memory()
        slope = memory.find_slope(ends[0].shape[1])
        trained = [p for p in self._layers[index].parameters() if p.requires_grad]
        keeps, on_view = index in self._kept, hasattr(self._layers[index], "unshard")
        layer = FixedLayer(
            lambda x: run(x, *args, **kwargs), *ends, slope, trained, keeps, on_view, self._stream
        )
        current.layers.append(layer)
        current.forwards.append(layer.capture_forward(memory.pool, current.dice))
        memory.pool = current.forwards[-1].pool()

    @torch.no_grad()
    def _capture_backwards(self, current: CapturedPass) -> None:
        """Capture the backward of all layers, from the last on: what is kept is then given back."""
        memory = current.find_memory()
        captured: list[Replayed] = []
        for layer in reversed(current.layers):
            captured.append(layer.capture_backward(memory.pool, current.dice))
            memory.pool = captured[-1].pool()
        current.backwards = captured[::-1]
        device = current.batch["input_ids"].device
        if self._kept and device.type == "cuda" and count_unused_bytes(device) < HEAD_BYTES:
            raise UnfitLayersError("what they keep leaves too little memory for the head")

    def run_backward(self, current: CapturedPass, index: int, slope: Tensor) -> Tensor:
        """Run the backward of a layer; return the gradient by its input, `[1, tokens, hidden]`.

        Args:
            current: The pass.
            index: Of the layer.
            slope: The gradient by what it gave, of that shape.
        """
        own = current.find_memory().find_slope(slope.shape[1])
        own.copy_(slope)
        self._weights.take(index)
        now = current.dice.read()
        current.dice.write(current.offsets[index])
        if current.backwards:
            current.backwards[index].replay()
        else:
            current.layers[index].backward()
        current.dice.write(now)
        return own.clone()  # autograd may hold it while the layer before writes its own

    def _end_all(self, but: CapturedPass | None = None) -> None:
        for other in self._passes.values():
            if other is not but:
                other.end()
        self._passes.clear()
        self._memory = None

    def _find_memory(self, like: Tensor) -> PassMemory:
        if like.is_cuda and self._stream is None:
            self._stream = make_capture_stream(like.device)
        if self._memory is None:
            self._memory = PassMemory(like, len(self._layers))
        return self._memory


class _Captured(torch.autograd.Function):
    """A layer, `[1, tokens, hidden]` of such."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        anchor: Tensor,
        graphs: LayerGraphs,
        current: CapturedPass,
        index: int,
        args: object,
        kwargs: object,
    ) -> Tensor:
        ctx.where = graphs, current, index
        return graphs.run_forward(current, index, hidden, args, kwargs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        graphs, current, index = ctx.where
        return graphs.run_backward(current, index, *gradients), *[None] * 6
