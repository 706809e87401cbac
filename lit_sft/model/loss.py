"""Cross-entropy on the supervised positions, and on nothing else."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lit_sft.types import IGNORE_INDEX


def sum_supervised_loss(model: PreTrainedModel, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Run a causal language model and sum its loss over the supervised tokens.

    Args:
        model: A causal language model of plain logits (see `require_plain_logits`).
        input_ids: int64 `[batch, tokens]`, padded on the right.
        labels: int64 `[batch, tokens]`, unshifted.

    Returns:
        float32 scalar: the sum, not the mean. Whoever knows all tokens of the optimizer step
        divides by their number.
    """
    # No cache: with one, transformers takes another path through the mask, and keeps every key.
    hidden = model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
    return sum_cross_entropy(hidden, model.get_output_embeddings(), labels)


def sum_cross_entropy(hidden: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
    """Sum the next-token cross-entropy over the positions whose next label is supervised.

    The unsupervised positions are dropped before the head: it is the largest matrix of a small
    model, and about 40 % of the positions of GSM8K would pay for it without carrying loss.

    Args:
        hidden: Last hidden states, `[batch, tokens, hidden]`.
        head: Maps `[n, hidden]` to logits `[n, vocabulary]`.
        labels: int64 `[batch, tokens]`, unshifted; `IGNORE_INDEX` where there is no loss.

    Returns:
        float32 scalar; the softmax is taken in float32 whatever the dtype of the logits.
    """
    targets = labels[:, 1:]
    supervised = targets != IGNORE_INDEX
    logits = head(hidden[:, :-1][supervised])
    with torch.autocast(logits.device.type, enabled=False):
        return functional.cross_entropy(logits.float(), targets[supervised], reduction="sum")
