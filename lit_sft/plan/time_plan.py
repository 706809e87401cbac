"""How long the parts of a run take on this device, by its operations; no weights are read."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from lit_sft.evaluation.evaluating import evaluating
from lit_sft.evaluation.generate import Past, find_likeliest, take_step
from lit_sft.model.fast.attention import use_attention
from lit_sft.model.fast.cross_entropy import ROWS_AT_ONCE, fused_cross_entropy
from lit_sft.model.fast.embedding import TokenRows
from lit_sft.model.loss import decode
from lit_sft.model.optim import build_optimizer, is_flat
from lit_sft.plan.operations import Noted, Operation, noting, time_call, time_operations

if TYPE_CHECKING:
    from lit_sft.plan.weightless import Weightless

TIMED_STATES = 1024
TIMED_ELEMENTS = 2**20
PREFILL_TOKENS = 2**12
"""Prompt tokens that are timed at once; a batch has more, and takes as much longer."""


class Pass(NamedTuple):
    """The layers of one pass."""

    forward: Noted
    whole: Noted
    """With the backward pass."""


class Reading(NamedTuple):
    """A batch of prompts."""

    seconds: float
    """To read them all."""
    token_seconds: float
    """To go on by a token in each, halfway through the answers."""
    bytes: int
    """What reading holds at its peak, beside keys and values."""


def note_pass(
    weightless: "Weightless",
    lengths: Sequence[int],
    packed: bool,
    autocast: AbstractContextManager[object],
) -> Pass:
    """Note what a training pass does in the layers of a model.

    Args:
        weightless: The model.
        lengths: Tokens of each row.
        packed: Whether the rows lie end to end.
        autocast: The precision.
    """
    batch = weightless.make_batch(lengths, packed)
    model = weightless.model
    with noting(model, weightless.mode) as whole, autocast:
        hidden = decode(model, batch)
        forward = Noted(whole.counts.copy(), whole.flops, whole.live_bytes, whole.peak_bytes)
        torch.autograd.backward(hidden, torch.ones_like(hidden))
        del hidden
    for parameter in model.parameters():
        parameter.grad = None
    return Pass(forward, whole)


def time_head(
    states: float, width: int, vocabulary: int, dtype: torch.dtype, device: torch.device
) -> float:
    """Return the seconds of loss and gradient of some hidden states, from a part of the head."""
    rows, count = min(vocabulary, ROWS_AT_ONCE), int(min(states, TIMED_STATES)) or 1
    head = make_head(rows, width, dtype, device)
    return time_call(lambda: head(count), device) * states / count * vocabulary / rows


def make_head(
    vocabulary: int, width: int, dtype: torch.dtype, device: torch.device
) -> Callable[[int], object]:
    """Return what computes the loss of so many random states, by a random head."""
    weight = torch.randn(vocabulary, width, device=device, dtype=dtype)
    table = TokenRows(weight, (), weight[:0])

    def compute(states: int) -> object:
        hidden = torch.randn(states, width, device=device, dtype=dtype)
        return fused_cross_entropy(hidden, hidden.new_zeros(states, dtype=torch.int64), table)

    return compute


def time_update(optimizer: str, elements: int, device: torch.device) -> float:
    """Return the seconds of clipping, of an optimizer's step and of zeroing, from a part of it."""
    name = optimizer if is_flat(optimizer) else "adamw"
    part = min(elements, TIMED_ELEMENTS)
    parameter = nn.Parameter(torch.zeros(part, device=device))
    parameter.grad = torch.zeros_like(parameter)
    stepped = build_optimizer(name, [[parameter]], 1e-4, 0.0)

    def update() -> None:
        nn.utils.clip_grad_norm_([parameter], 1.0)
        stepped.step()
        if parameter.grad is not None:
            parameter.grad.zero_()

    return time_call(update, device) * elements / part


def time_dequantising(weights: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the seconds in which so many 4-bit weights are dequantised once."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    matrix = torch.randn(1024, 1024, dtype=dtype, device=device)
    packed, state = quantize_4bit(matrix, quant_type="nf4", compress_statistics=True)
    seconds = time_call(lambda: dequantize_4bit(packed, state), device)
    return seconds * weights / matrix.numel()


def time_reading(
    weightless: "Weightless",
    prompts: Sequence[int],
    new_tokens: float,
    autocast: Callable[[], AbstractContextManager[object]],
    known: dict[Operation, float],
) -> Reading:
    """Return what a batch of answers takes.

    Args:
        weightless: The model.
        prompts: Tokens of each.
        new_tokens: Of an answer.
        autocast: Makes a context of the precision.
        known: Seconds of operations, as `time_operations` has it.
    """
    device, model = weightless.device, weightless.model
    rows, longest = len(prompts), max(prompts)
    timed = min(rows, max(1, PREFILL_TOKENS // longest))
    use_attention(model, packed=False)
    with evaluating(model), autocast():
        reading, _ = _note_step(weightless, timed, longest, {})
        _, past = _note_step(weightless, rows, int(longest + new_tokens / 2), {})
        going_on, _ = _note_step(weightless, rows, int(longest + new_tokens / 2) + 1, past)
    return Reading(
        time_operations(reading.counts, device, known) * rows / timed,
        time_operations(going_on.counts, device, known),
        int((reading.peak_bytes - reading.live_bytes) * rows / timed),
    )


def _note_step(weightless: "Weightless", rows: int, seen: int, past: Past) -> tuple[Noted, Past]:
    """Note how rows are read, or with a past are gone on with by a token."""
    tokens = 1 if past else seen
    with weightless.mode:
        made = partial(torch.ones, dtype=torch.int64, device=weightless.device)
        ids, mask, positions = made(rows, tokens), made(rows, seen), made(rows, tokens)
    with noting(weightless.model, weightless.mode) as noted:
        logits, past = take_step(weightless.model, ids, mask, positions, past)
        find_likeliest(logits)
    return noted, past
