"""Ranks that share a base run it together: each pass of one is a pass of all.

A layer is gathered from all ranks when it runs. A rank that has fewer rows, micro-batches or
answers than another takes the passes that it lacks with a token of which nothing is learnt.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lit_sft.errors import InputError
from lit_sft.model.distributed import max_over_ranks, sum_over_ranks
from lit_sft.model.loss import decode
from lit_sft.types import IGNORE_INDEX, Batch, Window

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def is_sharded(model: "PeftModel | PreTrainedModel") -> bool:
    """Return whether this rank has but a share of a model's base."""
    decoder: Any = model.get_decoder()
    return hasattr(decoder, "unshard")  # as modules of FSDP have; all parameters take milliseconds


def fill_up(model: "PeftModel | PreTrainedModel", window: Window, device: torch.device) -> Window:
    """Return the passes of a window, and as many empty ones as make it the longest of all ranks'.

    Args:
        model: Where it is not sharded, nothing is done.
        window: Of this rank; without rows, it has no passes.
        device: Where the passes are.
    """
    if not is_sharded(model):
        return window
    missing = max_over_ranks(len(window), device) - len(window)
    return [*window, *[make_empty_pass(device)] * missing]


def make_empty_pass(device: torch.device) -> Batch:
    """Return a batch of one token whose loss, and whose gradient, is 0."""
    return Batch(
        input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device),
        labels=torch.full((1, 1), IGNORE_INDEX, device=device),
        num_tokens=0,
        num_supervised=0,
    )


@contextmanager
def keep_in_step(model: "PeftModel | PreTrainedModel") -> Iterator[None]:
    """Let each rank run a model without gradients as often as it likes, until all are done.

    All ranks must enter. Before a pass, each says that it takes one; who leaves runs along until
    nobody does. Lightning's `inference_mode` is off meanwhile: the first tensors that are gathered
    are kept, and would be no good for training.

    Args:
        model: Where it is not sharded, nothing is done.

    Raises:
        InputError: If this rank ran out of memory within a pass, where the others wait for it.
    """
    if not is_sharded(model):
        yield
        return
    turn = _Turn(model)
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
            turn.run_along()
    except torch.OutOfMemoryError as error:
        turn.require_whole(error)
        with torch.inference_mode(False), torch.no_grad():
            turn.run_along()  # between passes it can go on alone, and the others are not kept
        raise
    finally:
        turn.end()


class _Turn:
    """Counts, before each pass, the ranks that take one of their own."""

    def __init__(self, model: Any) -> None:
        self._model, self._decoder = model, model.get_decoder()
        self._device = next(model.parameters()).device
        self._is_inside = self._is_along = False
        self._hooks = [
            self._decoder.register_forward_pre_hook(self._begin, prepend=True),
            self._decoder.register_forward_hook(self._leave),
        ]

    def run_along(self) -> None:
        """Take passes until no rank has one of its own."""
        self._is_along = True
        while self._count(0):
            decode(self._model, make_empty_pass(self._device))

    def require_whole(self, error: Exception | None = None) -> None:
        """Raise `InputError` if a pass has begun, and not come to its end."""
        if self._is_inside:
            raise InputError(
                "trainer.strategy: with fsdp2, a rank that runs out of memory within a pass cannot "
                "go on alone; lower the max_batch_tokens of GenerationEval, or data.batch_size"
            ) from error

    def end(self) -> None:
        """Let the model run by itself again."""
        for hook in self._hooks:
            hook.remove()

    def _count(self, mine: int) -> int:
        return int(sum_over_ranks(torch.tensor(mine, device=self._device)).item())

    def _begin(self, module: nn.Module, inputs: object) -> None:
        if not self._is_along:
            self.require_whole()
            self._count(1)
        self._is_inside = True

    def _leave(self, module: nn.Module, inputs: object, output: object) -> None:
        self._is_inside = False
