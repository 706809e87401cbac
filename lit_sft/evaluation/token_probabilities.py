"""How likely a model held the tokens of answers that it gave."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@torch.no_grad()
def weigh_tokens(
    model: Any,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    scale: Callable[[Tensor], Tensor] = lambda logits: logits,
) -> list[list[float]]:
    """Return the probability of each token of some answers, given all before it.

    They are run side by side, padded on the right, where no token looks; of a model whose positions
    are scaled by the longest row, all get that scale.

    Args:
        model: A causal language model of transformers in eval mode, or a `peft.PeftModel`.
        rows: Token ids of a prompt, one or more, and those of the answer that follows.
        scale: What the model makes of its head's output, of any shape.

    Returns:
        `[rows][tokens]` of the answers, between 0 and 1.
    """
    if not rows:
        return []
    device = next(model.parameters()).device
    ids = [torch.tensor([*prompt, *answer], device=device) for prompt, answer in rows]
    decoded = model.get_decoder()(input_ids=pad_sequence(ids, batch_first=True), use_cache=False)
    found = []
    for row, states, (prompt, answer) in zip(ids, decoded.last_hidden_state, rows, strict=True):
        first, end = len(prompt), len(prompt) + len(answer)
        logits = scale(model.get_output_embeddings()(states[first - 1 : end - 1]).float())
        chosen = logits.gather(-1, row[first:, None])[:, 0]
        found.append((chosen - logits.logsumexp(-1)).exp().tolist())
    return found
