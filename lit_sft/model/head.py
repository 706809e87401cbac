"""The loss of a frozen head and the gradient of its input, made at once and without any logits.

With W the rows of the head, the loss of a hidden state h and its target t is

    loss = lse(h W') - h w_t        d loss / d h = softmax(h W') W - w_t

Its gradient is thus what attention gives for the query h, with W for keys and for values, and `lse`
is what flash attention keeps to normalise by (Dao et al., 2022): one call gives both. The rows that
are trained beside the frozen ones are a second, short list of keys; the softmaxes are joined by
their log-sum-exps, as the blocks of flash attention are.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_sft.model.token_rows import TokenRows, match_tokens

ROWS_AT_ONCE = 2**14
"""Rows of the head in one call of the CPU's kernel, which lays a copy of them out for itself."""
CHUNK_LOGITS = 2**27
"""Logits held at once on a device whose attention kernels are too narrow for a head."""


class Mixture(NamedTuple):
    """What the softmax over some rows of a head comes to, for each hidden state."""

    lse: Tensor
    """float32 `[n]`: the log-sum-exp of the logits."""
    mean: Tensor
    """`[n, hidden]`: the rows, weighted by their probabilities."""


def fused_cross_entropy(hidden: Tensor, targets: Tensor, head: TokenRows) -> Tensor:
    """Sum the cross-entropy of hidden states, holding no more than a chunk of logits.

    Args:
        hidden: `[n, hidden]`, of supervised positions alone.
        targets: int64 `[n]`.
        head: The rows of the head; only the trained ones among them get a gradient.

    Returns:
        float32 scalar; every sum over the vocabulary is taken in float32.
    """
    loss: Tensor = _FusedCrossEntropy.apply(hidden, head.weight, head.token_ids, head.rows, targets)
    return loss


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        token_ids: tuple[int, ...],
        rows: Tensor,
        targets: Tensor,
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            states, own = hidden.to(weight.dtype), rows.to(weight.dtype)
            lse, mean = _join([_mix(states, part) for part in _split(weight, token_ids, own)])
            is_own = match_tokens(targets, token_ids)
            target_rows = torch.where(
                is_own.any(1, keepdim=True), is_own.to(own.dtype) @ own, weight[targets]
            )
            logits = (states.float() * target_rows.float()).sum(1)
            shares = (states.float() @ own.float().T - lse[:, None]).exp() - is_own.float()
            ctx.save_for_backward((mean - target_rows).to(hidden.dtype), shares.T @ states.float())
            return (lse - logits).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_rows = ctx.saved_tensors
        (gradient,) = gradients
        return (of_hidden * gradient).to(of_hidden.dtype), None, None, of_rows * gradient, None


def _split(weight: Tensor, token_ids: tuple[int, ...], own: Tensor) -> list[Tensor]:
    """Return the rows in use, as views of the frozen ones and the trained ones after them."""
    ends = [-1, *token_ids, len(weight)]
    frozen = [weight[a + 1 : b] for a, b in pairwise(ends)]
    return [part for part in (*frozen, own) if len(part)]


def _mix(states: Tensor, rows: Tensor) -> Mixture:
    if states.device.type == "cpu" and len(states):  # the kernel divides by their number
        return _join([mix_by_attention(states, part) for part in rows.split(ROWS_AT_ONCE)])
    return mix_by_chunks(states, rows, CHUNK_LOGITS)


def mix_by_attention(states: Tensor, rows: Tensor) -> Mixture:
    """Return the mixture in one pass, tile by tile: no logits ever stand in memory.

    Kernels for CUDA stop at a width of 256; the CPU's takes any.

    Args:
        states: `[n, hidden]`.
        rows: `[m, hidden]`, of the same dtype.
    """
    query, key = states[None, None], rows[None, None]
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mean, lse = attend(query, key, key, scale=1.0)
    return Mixture(lse.flatten(), mean[0, 0])


def mix_by_chunks(states: Tensor, rows: Tensor, chunk_logits: int) -> Mixture:
    """Return the mixture from the logits of a few states at a time.

    Args:
        states: `[n, hidden]`.
        rows: `[m, hidden]`, of the same dtype.
        chunk_logits: Logits held at once; those of one state, if they are more.
    """
    lse = states.new_empty(len(states), dtype=torch.float32)
    mean = torch.empty_like(states)
    size = max(1, chunk_logits // len(rows))
    for at in range(0, len(states), size):
        chunk = slice(at, at + size)
        logits = _multiply_in_float32(states[chunk], rows.T)
        lse[chunk] = logits.logsumexp(1)
        mean[chunk] = logits.sub_(lse[chunk, None]).exp_().to(rows.dtype) @ rows
    return Mixture(lse, mean)


def _multiply_in_float32(left: Tensor, right: Tensor) -> Tensor:
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


def _join(parts: Sequence[Mixture]) -> Mixture:
    if len(parts) == 1:
        return parts[0]
    lse = torch.stack([part.lse for part in parts]).logsumexp(0)
    mean = sum(part.mean.float() * (part.lse - lse).exp()[:, None] for part in parts)
    return Mixture(lse, mean)  # type: ignore[arg-type]
