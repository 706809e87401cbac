"""The loss of a frozen head and the gradient of its input, made at once and without any logits.

With W the rows of the head, the loss of a hidden state h and its target t is

    loss = lse(h W') - h w_t        d loss / d h = softmax(h W') W - w_t

On a CPU, that is what attention gives for the query h, with W for keys and for values, and `lse` is
what flash attention keeps to normalise by (Dao et al., 2022): one call gives both. Kernels for CUDA
stop at a width of 256; there, logits stand in memory for a chunk of the states at a time.
`tests/benchmarks/head.py` compares with torch's own `linear_cross_entropy`, which is slower.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig

from lit_sft.model.fast.embedding import TokenRows, match_tokens

ROWS_AT_ONCE = 2**14
"""Rows of the head in one call of the CPU's kernel, which lays a copy of them out for itself."""
FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier")
"""Config entries by which models multiply or divide their logits; which of the two is measured."""
CHUNK_LOGITS = 2**27
"""Logits that stand in memory at once on other devices, at the most: 512 MiB, and half as much for
what is made of them in bfloat16. 2**25 took 9.8 ms for 1,900 states of Llama-3.2-3B on an H200
where these take 7.5, and 2**24 took 14.3."""
CHUNKS = 4
"""Into which the states of a smaller pass are cut; its head then takes less than its layers."""
WAVE = 128
"""States that fill the matrix units of a device. A pass with fewer in a quarter is that of a run
which has little memory: half of them at once, then, as logits are at its peak."""


class LogitScale(NamedTuple):
    """What some models make of their head's output before the softmax."""

    factor: float = 1.0
    """Logits are multiplied by it, such as by Granite and Cohere."""
    softcap: float | None = None
    """Then squeezed between plus and minus this, as `softcap * tanh(logits / softcap)`: Gemma 2."""

    def apply(self, logits: Tensor) -> Tensor:
        """Return what the model makes of logits of any shape."""
        scaled = logits * self.factor if self.factor != 1.0 else logits
        return scaled if self.softcap is None else self.softcap * (scaled / self.softcap).tanh()


def choose_logit_scale(plain: Tensor, own: Tensor, config: PretrainedConfig) -> LogitScale:
    """Return what a model makes of its head's output, found by trying what its config may mean.

    The entries of `FACTORS` mean a product in some models, and a quotient in others.

    Args:
        plain: What the head gives, `[tokens, vocabulary]`.
        own: The model's logits, likewise.
        config: The model's.
    """
    known_to = config.get_text_config()
    values = [getattr(known_to, name, None) for name in FACTORS]
    factors = [1.0, *(x for value in values if value for x in (float(value), 1 / value))]
    softcap = getattr(known_to, "final_logit_softcapping", None)
    known = [LogitScale(factor, cap) for factor in factors for cap in {softcap, None}]
    return min(known, key=lambda scale: (scale.apply(plain.float()) - own.float()).norm().item())


class Loss(NamedTuple):
    """A summed loss and its gradients."""

    loss: Tensor
    """float32 scalar."""
    of_hidden: Tensor
    """`[n, hidden]`."""
    of_rows: Tensor
    """float32 `[len(token_ids), hidden]`: of the trained rows of the head."""


def fused_cross_entropy(
    hidden: Tensor,
    targets: Tensor,
    head: TokenRows,
    logit_scale: LogitScale = LogitScale(),  # noqa: B008 (it is frozen)
) -> Tensor:
    """Sum the cross-entropy of hidden states, holding no more than a chunk of logits.

    Args:
        hidden: `[n, hidden]`, of supervised positions alone.
        targets: int64 `[n]`.
        head: The rows of the head; only the trained ones among them get a gradient.
        logit_scale: What the model makes of the logits.

    Returns:
        float32 scalar; every sum over the vocabulary is taken in float32.
    """
    if logit_scale.factor != 1.0:  # the logits are linear in the hidden states, which are narrower
        hidden = hidden * logit_scale.factor
    apply: Callable[..., Tensor] = _FusedCrossEntropy.apply
    return apply(hidden, head.weight, head.token_ids, head.rows, targets, logit_scale.softcap)


class _FusedCrossEntropy(torch.autograd.Function):
    """The loss, `[]`, of states `[n, hidden]`; both gradients are made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        token_ids: tuple[int, ...],
        rows: Tensor,
        targets: Tensor,
        softcap: float | None,
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            head = TokenRows(weight, token_ids, rows.to(weight.dtype))
            states = hidden.to(weight.dtype)
            # The kernel divides by the number of states, and cannot cap a logit.
            if hidden.device.type == "cpu" and len(states) and softcap is None:
                loss, of_hidden, of_rows = differentiate_by_attention(states, targets, head)
            else:
                loss, of_hidden, of_rows = differentiate_by_chunks(
                    states, targets, head, choose_chunk(len(states), len(weight)), softcap
                )
            ctx.save_for_backward(of_hidden.to(hidden.dtype), of_rows)
            return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_rows = ctx.saved_tensors
        (gradient,) = gradients
        of_hidden = (of_hidden * gradient).to(of_hidden.dtype)
        return of_hidden, None, None, of_rows * gradient, None, None


def choose_chunk(states: int, vocabulary: int) -> int:
    """Return of how many states the logits are held at once, where no kernel does without any."""
    quarter = -(-states // CHUNKS)
    return max(1, min(quarter if quarter >= WAVE else WAVE // 2, CHUNK_LOGITS // vocabulary))


def differentiate_by_attention(states: Tensor, targets: Tensor, head: TokenRows) -> Loss:
    """Return loss and gradients in one pass over the head, tile by tile.

    The trained rows are one more list of keys, and the softmaxes of all lists are joined by their
    log-sum-exps, as the blocks of flash attention are. In bfloat16, the gradient of a target that
    is all but certain, which is small, drowns in the rounding of the row that it is a multiple of.

    Args:
        states: `[n, hidden]`, at least one.
        targets: int64 `[n]`.
        head: All of the dtype of `states`.
    """
    own = head.rows
    lse, mean = _join([_attend(states, part) for part in _split(head)])
    is_own = match_tokens(targets, head.token_ids)
    target_rows = torch.where(
        is_own.any(1, keepdim=True), is_own.to(own.dtype) @ own, head.weight[targets]
    )
    logits = (states.float() * target_rows.float()).sum(1)
    shares = (states.float() @ own.float().T - lse[:, None]).exp() - is_own.float()
    return Loss((lse - logits).sum(), mean - target_rows, shares.T @ states.float())


def differentiate_by_chunks(
    states: Tensor,
    targets: Tensor,
    head: TokenRows,
    size: int,
    softcap: float | None = None,
) -> Loss:
    """Return loss and gradients from the logits of a few states at a time.

    Args:
        states: `[n, hidden]`.
        targets: int64 `[n]`.
        head: All of the dtype of `states`.
        size: States whose logits are held at once.
        softcap: As in `LogitScale`; logits are held twice with one.
    """
    weight, own, own_ids = head.weight, head.rows, head.token_ids_on(states.device)
    loss = states.new_zeros((), dtype=torch.float32)
    of_hidden = torch.empty_like(states)
    of_rows = own.new_zeros(own.shape, dtype=torch.float32)
    for at in range(0, len(states), size):
        chunk, target = states[at : at + size], targets[at : at + size, None]
        logits = _multiply_in_float32(chunk, weight.T)
        logits[:, own_ids] = _multiply_in_float32(chunk, own.T)
        slope = None if softcap is None else _cap(logits, softcap)
        loss += _normalise(logits, target)
        # In float32, so that of a target that is all but certain the small rest is left.
        shares = logits.scatter_add_(1, target, torch.full_like(logits[:, :1], -1.0))
        if slope is not None:
            shares *= slope
        own_shares = shares[:, own_ids]
        of_rows += own_shares.T @ chunk.float()
        shares[:, own_ids] = torch.zeros_like(own_shares)  # a number would be waited for
        of_hidden[at : at + size] = (
            shares.to(weight.dtype) @ weight + own_shares.to(own.dtype) @ own
        )
    return Loss(loss, of_hidden, of_rows)


def _split(head: TokenRows) -> list[Tensor]:
    """Return the rows in use, `[some, hidden]` each: views of the frozen ones, then the trained."""
    ends = pairwise([-1, *head.token_ids, len(head.weight)])
    parts = [head.weight[a + 1 : b] for a, b in ends if a + 1 < b]
    frozen = [piece for part in parts for piece in torch.split(part, ROWS_AT_ONCE)]
    return [*frozen, head.rows] if len(head.rows) else frozen


def _attend(states: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-sum-exp of the logits, and the mean of the rows by their probabilities.

    These are `[n]` and `[n, hidden]`, for states `[n, hidden]` and rows `[rows, hidden]`.
    """
    query, key = states[None, None], rows[None, None]
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mean, lse = attend(query, key, key, scale=1.0)
    return lse.flatten(), mean[0, 0]


def _join(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return what `_attend` would of all rows at once: `[n]` and `[n, hidden]`."""
    if len(parts) == 1:
        return parts[0]
    lse = torch.stack([own for own, _ in parts]).logsumexp(0)
    mean = torch.zeros_like(parts[0][1], dtype=torch.float32)
    for own, part in parts:
        mean += part.float() * (own - lse).exp()[:, None]
    return lse, mean


def _normalise(logits: Tensor, targets: Tensor) -> Tensor:
    """Make probabilities of logits, `[n, vocabulary]`, in place, and return the loss of targets.

    torch's `logsumexp` would hold another matrix of that size.

    Args:
        logits: float32.
        targets: int64 `[n, 1]`.
    """
    of_targets = logits.gather(1, targets)
    largest = logits.amax(1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(1, keepdim=True)
    logits /= total
    return (total.log() + (largest - of_targets)).sum()


def _cap(logits: Tensor, softcap: float) -> Tensor:
    """Squeeze logits in place, and return the derivative, of their shape."""
    slope = 1 - logits.div_(softcap).tanh_().square()
    logits *= softcap
    return slope


def _multiply_in_float32(left: Tensor, right: Tensor) -> Tensor:
    """Return `[n, m]` in float32 of `[n, k]` and `[k, m]`, which may be narrower."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()
