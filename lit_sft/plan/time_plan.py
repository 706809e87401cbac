"""How long the parts of a run take on this device: its operations are timed, none of its weights."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from lit_sft.evaluation.evaluating import evaluating
from lit_sft.model.fast.cross_entropy import ROWS_AT_ONCE, fused_cross_entropy
from lit_sft.model.fast.embedding import TokenRows
from lit_sft.model.loss import decode
from lit_sft.model.optim import build_optimizer, is_flat
from lit_sft.plan.operations import Noted, Operation, noting, time_call, time_operations

if TYPE_CHECKING:
    from transformers import PretrainedConfig

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
    autocast: AbstractContextManager[Any],
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
        hidden.backward(torch.ones_like(hidden))
        del hidden
    for parameter in model.parameters():
        parameter.grad = None
    return Pass(forward, whole)


def time_head(states: float, width: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the seconds of loss and gradient of some hidden states, from a part of the head."""
    rows = min(vocabulary, ROWS_AT_ONCE)
    count = int(min(states, TIMED_STATES)) or 1
    hidden = torch.randn(count, width, device=device, dtype=dtype)
    weight = torch.randn(rows, width, device=device, dtype=dtype)
    targets = torch.zeros(count, dtype=torch.int64, device=device)
    table = TokenRows(weight, (), weight[:0])
    seconds = time_call(lambda: fused_cross_entropy(hidden, targets, table), device)
    return seconds * states / count * vocabulary / rows


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


def time_dequantising(weights: int, dtype: torch.dtype, device: torch.device, kind: str) -> float:
    """Return the seconds in which all 4-bit weights are dequantised once."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    matrix = torch.randn(1024, 1024, dtype=dtype, device=device)
    packed, state = quantize_4bit(matrix, quant_type=kind, compress_statistics=True)
    seconds = time_call(lambda: dequantize_4bit(packed, state), device)
    return seconds * weights / matrix.numel()


def time_reading(
    weightless: "Weightless",
    config: "PretrainedConfig",
    prompts: Sequence[int],
    new_tokens: float,
    autocast: Callable[[], AbstractContextManager[Any]],
    dtype: torch.dtype,
    known: dict[Operation, float],
) -> Reading:
    """Return what a batch of answers takes.

    Args:
        weightless: The model.
        config: Of its text model.
        prompts: Tokens of each.
        new_tokens: Of an answer.
        autocast: Makes a context of the precision.
        dtype: Of keys and values.
        known: Seconds of operations, as `time_operations` has it.
    """
    device, model = weightless.device, weightless.model
    rows, longest = len(prompts), max(prompts)
    timed = min(rows, max(1, PREFILL_TOKENS // longest))
    noted = []
    for shape in ([longest] * timed, [1] * rows):
        batch = weightless.make_batch(shape, packed=False)
        with evaluating(model), noting(model, weightless.mode) as one, autocast():
            decode(model, batch)
        noted.append(one)
    read = time_operations(noted[0].counts, device, known) * rows / timed
    step = time_operations(noted[1].counts, device, known)
    step += _time_cached_attention(config, rows, int(longest + new_tokens / 2), dtype, device)
    step += _time_logits(rows, config, dtype, device)
    return Reading(read, step, int(noted[0].peak_bytes * rows / timed))


def _time_cached_attention(
    config: "PretrainedConfig", rows: int, seen: int, dtype: torch.dtype, device: torch.device
) -> float:
    """Return the seconds of all layers that append a token to their cache, and attend to it."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    own = getattr(config, "num_key_value_heads", None) or heads
    timed = max(1, min(rows, 2**25 // (heads * seen * width)))
    cached = torch.randn(timed, own, seen, width, dtype=dtype, device=device)
    new, query = cached[:, :, :1], torch.randn(timed, heads, 1, width, dtype=dtype, device=device)
    mask = torch.ones(timed, 1, 1, seen + 1, dtype=torch.bool, device=device)

    def attend() -> None:
        key, value = torch.cat([cached, new], 2), torch.cat([cached, new], 2)
        key, value = (x.repeat_interleave(heads // own, 1) for x in (key, value))
        scaled_dot_product_attention(query, key, value, attn_mask=mask)

    return time_call(attend, device) * rows / timed * config.num_hidden_layers


def _time_logits(
    rows: int, config: "PretrainedConfig", dtype: torch.dtype, device: torch.device
) -> float:
    vocabulary = min(config.vocab_size, ROWS_AT_ONCE)
    hidden = torch.randn(rows, config.hidden_size, dtype=dtype, device=device)
    weight = torch.randn(vocabulary, config.hidden_size, dtype=dtype, device=device)
    seconds = time_call(lambda: (hidden @ weight.T).float().argmax(-1), device)
    return seconds * config.vocab_size / vocabulary
