"""How likely a model held the tokens of an answer that it gave."""

from collections.abc import Sequence
from typing import Any

import torch


@torch.no_grad()
def weigh_tokens(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """Return the probability of each token of an answer, given all before it.

    Args:
        model: A causal language model of transformers in eval mode, or a `peft.PeftModel`.
        prompt: Token ids, one or more.
        answer: Token ids that follow.

    Returns:
        `[tokens]` of the answer, between 0 and 1.
    """
    ids = torch.tensor([[*prompt, *answer]], device=next(model.parameters()).device)
    output = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1)
    logits = output.logits[0, :-1].float()
    chosen = logits.gather(-1, ids[0, len(prompt) :, None])[:, 0]
    weights: list[float] = (chosen - logits.logsumexp(-1)).exp().tolist()
    return weights
