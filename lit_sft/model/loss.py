"""Cross-entropy on the supervised positions, and on nothing else."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lit_sft.model.attention import use_attention
from lit_sft.model.head import fused_cross_entropy
from lit_sft.model.token_rows import embed, read_rows
from lit_sft.types import IGNORE_INDEX, Batch


def sum_supervised_loss(model: PreTrainedModel, batch: Batch, fused: bool = True) -> Tensor:
    """Run a causal language model and sum its loss over the supervised tokens.

    Args:
        model: A causal language model whose logits are its head's, see `read_base_config`.
        batch: Rows side by side, or end to end.
        fused: Whether to use `fused_cross_entropy`; a head that is more than frozen rows, such as
            one with a bias, takes the plain way in any case.

    Returns:
        float32 scalar: the sum, not the mean. Whoever knows all tokens of the optimizer step
        divides by their number.
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
    head: Any = model.get_output_embeddings()
    rows = read_rows(head) if fused else None
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"]}
    if rows is not None:
        inputs = {"inputs_embeds": embed(model.get_input_embeddings(), batch["input_ids"])}
    # No cache: with one, transformers takes another path through the mask, and keeps every key.
    hidden = model.get_decoder()(**inputs, use_cache=False, **boundaries).last_hidden_state
    if rows is None:
        return sum_cross_entropy(hidden, head, batch["labels"])
    return fused_cross_entropy(*select_supervised(hidden, batch), rows)


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


def sum_cross_entropy(hidden: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
    """Sum the next-token cross-entropy over the positions whose next label is supervised.

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
