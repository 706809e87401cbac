"""Cross-entropy on the supervised positions, and on nothing else."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_sft.model.fast.attention import use_attention
from lit_sft.model.fast.cross_entropy import LogitScale, fused_cross_entropy
from lit_sft.model.fast.embedding import read_rows
from lit_sft.types import IGNORE_INDEX, Batch


class CausalLM(Protocol):
    """A causal language model of transformers, or a `peft.PeftModel` around one."""

    @property
    def config(self) -> Any:
        """Of the model."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Return all modules by their full names."""

    def get_decoder(self) -> Any:
        """Return all of it but the head."""

    def get_input_embeddings(self) -> Any:
        """Return the embedding."""

    def get_output_embeddings(self) -> Any:
        """Return the head."""


def sum_supervised_loss(
    model: CausalLM,
    batch: Batch,
    fused: bool = True,
    logit_scale: LogitScale = LogitScale(),  # noqa: B008 (it is frozen)
    hidden: Tensor | None = None,
) -> Tensor:
    """Run a causal language model and sum its loss over the supervised tokens.

    Args:
        model: A causal language model.
        batch: Rows side by side, or packed; int64 `[batch, tokens]` tensors.
        fused: Whether to use `fused_cross_entropy`; a head that is more than frozen rows, such as
            one with a bias, takes the plain way in any case.
        logit_scale: What the model makes of its head's output, see
            `lit_sft.model.fast.cross_entropy.choose_logit_scale`.
        hidden: The last hidden states, `[batch, tokens, hidden]`, where they are there already;
            otherwise `decode` makes them.

    Returns:
        float32 scalar: the sum, not the mean. Whoever knows all tokens of the optimizer step
        divides by their number.
    """
    hidden = decode(model, batch) if hidden is None else hidden
    return sum_head_loss(model.get_output_embeddings(), hidden, batch, fused, logit_scale)


def decode(model: CausalLM, batch: Batch) -> Tensor:
    """Run a causal language model without its head.

    Args:
        model: A causal language model.
        batch: Rows side by side, or packed, which decides how the model attends.

    Returns:
        The last hidden states, `[batch, tokens, hidden]`.
    """
    boundaries: dict[str, Any] = {}
    if "cu_seq_lens" in batch:
        boundaries = {
            "position_ids": batch["position_ids"],
            "cu_seq_lens_q": batch["cu_seq_lens"],
            "cu_seq_lens_k": batch["cu_seq_lens"],
            "max_length_q": batch["max_length"],
            "max_length_k": batch["max_length"],
        }
    use_attention(model, packed=bool(boundaries))
    # No cache: with one, transformers takes another path through the mask, and keeps every key.
    # Token ids rather than their embeddings: some models scale the latter only on the way from ids.
    decoded = model.get_decoder()(input_ids=batch["input_ids"], use_cache=False, **boundaries)
    hidden: Tensor = decoded.last_hidden_state
    return hidden


def sum_head_loss(
    head: nn.Module, hidden: Tensor, batch: Batch, fused: bool, logit_scale: LogitScale
) -> Tensor:
    """Sum the loss of the hidden states that have to predict a supervised token.

    Args:
        head: Maps `[n, hidden]` to logits `[n, vocabulary]`.
        hidden: `[batch, tokens, hidden]`.
        batch: Whose labels they have to predict.
        fused: As `sum_supervised_loss` takes it.
        logit_scale: Likewise.

    Returns:
        float32 scalar.
    """
    rows = read_rows(head) if fused else None
    if rows is None:
        return sum_cross_entropy(hidden, head, batch["labels"], logit_scale)
    states, targets = select_supervised(hidden, batch)
    return fused_cross_entropy(states, targets, rows, logit_scale)


def select_supervised(hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the hidden states that have to predict a supervised token, and those tokens.

    The number of them is known from the batch, so that no device is waited for.

    Args:
        hidden: `[batch, tokens, hidden]`.
        batch: Its labels are unshifted.

    Returns:
        `[n, hidden]`, and int64 `[n]`.
    """
    targets = batch["labels"][:, 1:].flatten()
    places = torch.nonzero_static(targets != IGNORE_INDEX, size=batch["num_supervised"])[:, 0]
    return hidden[:, :-1].flatten(0, 1)[places], targets[places]


def sum_cross_entropy(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor,
    logit_scale: LogitScale = LogitScale(),  # noqa: B008 (it is frozen)
) -> Tensor:
    """Sum the next-token cross-entropy over the positions whose next label is supervised.

    Args:
        hidden: Last hidden states, `[batch, tokens, hidden]`.
        head: Maps `[n, hidden]` to logits `[n, vocabulary]`.
        labels: int64 `[batch, tokens]`, unshifted; `IGNORE_INDEX` where there is no loss.
        logit_scale: What the model makes of the logits.

    Returns:
        float32 scalar; the softmax is taken in float32 whatever the dtype of the logits.
    """
    targets = labels[:, 1:]
    supervised = targets != IGNORE_INDEX
    logits = head(hidden[:, :-1][supervised])
    with torch.autocast(logits.device.type, enabled=False):
        logits = logit_scale.apply(logits.float())
        return functional.cross_entropy(logits, targets[supervised], reduction="sum")
