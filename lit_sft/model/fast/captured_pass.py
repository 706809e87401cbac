"""A pass whose layers are captured one by one, and the memory that such passes share."""

from typing import Any

from torch import Tensor

from lit_sft.model.fast.fixed_inputs import FixedInputs
from lit_sft.model.fast.fixed_layer import Dice, FixedLayer, Replayed
from lit_sft.types import Batch


class PassMemory:
    """What all passes use: the inputs of the layers, the gradient by one, and the graphs' own.

    Args:
        like: Hidden states of the longest of them, `[1, most, hidden]`.
        layers: How many there are.
    """

    def __init__(self, like: Tensor, layers: int) -> None:
        _, self.most, self._hidden = like.shape

        def make() -> Tensor:
            return like.new_zeros(like.numel())

        self._inputs, self._slope = [make() for _ in range(layers + 1)], make()
        self.pool: Any = None

    def find_input(self, index: int, tokens: int) -> Tensor:
        """Return where the input of a layer stands, or what the last gives, `[1, tokens, hidden]`.

        It has the strides of any tensor of that shape: for others, layers are compiled anew.
        """
        return self._view(self._inputs[index], tokens)

    def find_slope(self, tokens: int) -> Tensor:
        """Return where the gradient by a layer stands, `[1, tokens, hidden]`."""
        return self._view(self._slope, tokens)

    def _view(self, whole: Tensor, tokens: int) -> Tensor:
        return whole[: tokens * self._hidden].view(1, tokens, self._hidden)


class CapturedPass:
    """A size, and its layers as they have been captured.

    Args:
        batch: Of that size; it is what the captured layers read.
        dice: Where dropout is drawn from.
    """

    def __init__(self, batch: Batch, dice: Dice) -> None:
        self.batch, self.dice = batch, dice
        self.layers: list[FixedLayer] = []
        self.forwards: list[Replayed] = []
        self.backwards: list[Replayed] = []
        """All of them, or none before they have been captured."""
        self.ran = 0
        self.offsets: dict[int, Any] = {}
        self.others = FixedInputs()
        self.memory: PassMemory | None = None

    def find_memory(self) -> PassMemory:
        """Return that which its layers have run in."""
        if self.memory is None:
            raise RuntimeError("no layer has been run, or a longer pass was, before the backward")
        return self.memory

    def end(self) -> None:
        """Give back its graphs and memory: a loss whose backward has run may still refer to it."""
        self.forget_graphs()
        self.layers.clear()
        self.memory, self.others = None, FixedInputs()

    def forget_graphs(self) -> None:
        """Leave its layers to be run as they are."""
        self.forwards.clear()
        self.backwards = []
        if self.memory is not None:
            self.memory.pool = None
