"""Layers that compute their forward again, each as two CUDA graphs: forward, and all its backward.

What is kept of a pass is the input of every layer, as with checkpoints of activations (Chen et al.,
2016); what a layer makes besides lies in memory that all of them share, so that a pass of any depth
takes that of one. Launched one by one, the kernels of such a pass wait for Python: of Llama-3.2-3B
in four bits, 2,000 tokens a second were trained so on an H100, and 9,000 and more by graphs on an
H200. `docs/GPU.md` has the figures.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_sft.cuda import warn_of_no_graphs
from lit_sft.model.fast.fixed_inputs import FixedInputs, UnfitLayersError
from lit_sft.model.fast.graphs import SIZE_STEP, Decode, Size, choose_size, fit, make_empty, write
from lit_sft.model.fast.memory import exchange_call
from lit_sft.model.fast.recomputed_layer import Dice, RecomputedLayer, Replayed
from lit_sft.types import Batch


class LayerGraphs:
    """Stands for `decode` in training where layers are computed again.

    Where a layer cannot be captured, such as for want of memory, there are no graphs from then on,
    which is said. On a CPU, which has none, the same work is done as it is.

    Args:
        decode: Runs a model; of the batch, it is given `input_ids`, `position_ids`, `cu_seq_lens`
            and `max_length`.
        layers: Those of the model, in order. All of them are computed again from now on.
        max_length: Of a row, in tokens.
        max_tokens: Of a pass.
    """

    def __init__(
        self,
        decode: Decode,
        layers: Sequence[GradientCheckpointingLayer],
        max_length: int,
        max_tokens: int,
    ) -> None:
        self._decode, self._layers, self._max_length = decode, list(layers), max_length
        self._step = min(SIZE_STEP, max_length)
        self._most = -(-max_tokens // self._step) * self._step
        self._run_layers: list[Callable[..., Any]] = []
        self._passes: dict[Size, _Pass] = {}
        self._memory: _Memory | None = None
        self._current: _Pass | None = None
        self._anchor = torch.zeros((), requires_grad=True)  # a frozen embedding has no gradient
        self.is_capturing = True
        for index, layer in enumerate(self._layers):
            layer.gradient_checkpointing = False
            run = exchange_call(layer)
            self._run_layers.append(run)
            exchange_call(layer, self._stand_for(index, run))

    def __call__(self, batch: Batch) -> Tensor:
        """Return the last hidden states, `[1, tokens, hidden]`, with a gradient."""
        tokens, size = batch["input_ids"].shape[1], choose_size(batch, self._step)
        hidden = self._try(size, batch) if self.is_capturing else None
        if hidden is None:
            hidden = self._decode(fit(batch, size, self._max_length))
        return hidden[:, :tokens]

    def _try(self, size: Size, batch: Batch) -> Tensor | None:
        """Run a pass, capturing layer after layer on the way where its size is new.

        Returns:
            The hidden states, or None where that is not possible, with the random state as it was.
        """
        device = batch["input_ids"].device
        dice, is_new = Dice(device), size not in self._passes
        before = dice.read_all()
        if is_new:
            self._passes[size] = _Pass(make_empty(size, self._max_length, device), dice)
        try:
            return self._run(self._passes[size], batch)
        except Exception as error:  # torch.OutOfMemoryError, or of any code that is captured
            if not is_new and not isinstance(error, UnfitLayersError):
                raise
            reason = str(error) or type(error).__name__
        self._give_up(size, reason)  # behind the error, which would hold all memory of the pass
        dice.renew()
        dice.write_all(before)
        return None

    def _run(self, current: "_Pass", batch: Batch) -> Tensor:
        self._current, current.ran = current, 0
        write(batch, current.batch)
        try:
            hidden = self._decode(current.batch)
        finally:
            self._current = None
        if current.ran != len(self._layers):
            raise UnfitLayersError(f"{current.ran} of {len(self._layers)} layers are run in a pass")
        return hidden

    def _give_up(self, size: Size, reason: str) -> None:
        self.is_capturing = False
        self._passes.clear()
        self._memory = None
        for layer, run in zip(self._layers, self._run_layers, strict=True):
            layer.gradient_checkpointing = True
            exchange_call(layer, run)
        warn_of_no_graphs(f"layers of {size.tokens:,} tokens", reason)

    def _stand_for(self, index: int, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(hidden: Tensor, *args: object, **kwargs: object) -> Any:
            if self._current is None or not torch.is_grad_enabled():
                return run(hidden, *args, **kwargs)
            apply: Callable[..., Tensor] = _Recomputed.apply
            return apply(hidden, self._anchor, self, self._current, index, args, kwargs)

        return call

    def run_forward(
        self, current: "_Pass", index: int, hidden: Tensor, args: Any, kwargs: Any
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
        current.ran += 1
        memory = self._find_memory(hidden)
        into, out = (memory.kept[i][:, : hidden.shape[1]] for i in (index, index + 1))
        if into.data_ptr() != hidden.data_ptr():
            into.copy_(hidden)
        if index == len(current.layers):
            args, kwargs = current.others.fix((args, kwargs))
            slope = memory.slope[:, : hidden.shape[1]]
            run, trained = self._run_layers[index], _find_trained(self._layers[index])
            layer = RecomputedLayer(lambda x: run(x, *args, **kwargs), into, out, slope, trained)
            graphs = layer.capture(memory.pool, current.dice)
            memory.pool = graphs[1].pool()
            current.layers.append(graphs)
        else:
            current.others.renew((args, kwargs), is_first=index == 0)
        current.offsets[index] = current.dice.read()
        current.layers[index][0].replay()
        return out

    def run_backward(self, current: "_Pass", index: int, slope: Tensor) -> Tensor:
        """Run a layer again and back; return the gradient by its input, `[1, tokens, hidden]`.

        Args:
            current: The pass.
            index: Of the layer.
            slope: The gradient by what it gave, of that shape.
        """
        own = self._find_memory(slope).slope[:, : slope.shape[1]]
        own.copy_(slope)
        now = current.dice.read()
        current.dice.write(current.offsets[index])
        current.layers[index][1].replay()
        current.dice.write(now)
        return own.clone()  # autograd may hold it while the layer before writes its own

    def _find_memory(self, like: Tensor) -> "_Memory":
        if self._memory is None:
            self._memory = _Memory(like, len(self._layers), self._most)
        return self._memory


class _Recomputed(torch.autograd.Function):
    """A layer, `[1, tokens, hidden]` of such, that is run again in its backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        anchor: Tensor,
        graphs: LayerGraphs,
        current: "_Pass",
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


class _Memory:
    """What all passes use: the inputs of the layers, the gradient by one, and the graphs' own.

    Args:
        like: Hidden states, `[1, some, hidden]`.
        layers: How many there are.
        most: Tokens.
    """

    def __init__(self, like: Tensor, layers: int, most: int) -> None:
        def make() -> Tensor:
            return like.new_zeros((1, most, like.shape[2]))

        self.kept = [make() for _ in range(layers + 1)]
        self.slope = make()
        self.pool: Any = None


class _Pass:
    """A size, and its layers as they have been captured.

    Args:
        batch: Of that size; it is what the captured layers read.
        dice: Where dropout is drawn from.
    """

    def __init__(self, batch: Batch, dice: "Dice") -> None:
        self.batch, self.dice = batch, dice
        self.layers: list[tuple[Replayed, Replayed]] = []
        self.ran = 0
        self.offsets: dict[int, Any] = {}
        self.others = FixedInputs()


def _find_trained(layer: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in layer.parameters() if parameter.requires_grad]
