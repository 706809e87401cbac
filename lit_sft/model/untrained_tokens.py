"""Which rows of the embedding a base model has never learnt.

A base model's vocabulary holds chat tokens that its pre-training never showed it. LoRA on the
attention layers cannot move their rows, so a fine-tuned model may answer and then never stop.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase

from lit_sft.data.prompts import find_chat_tokens
from lit_sft.errors import require

SAMPLED_ROWS = 4096
TYPICAL_SHARE = 0.99
FAINT = 0.1


def choose_tokens(
    wanted: Literal["auto", "none"] | list[str], weight: Tensor, tokenizer: PreTrainedTokenizerBase
) -> dict[int, str]:
    """Return the tokens whose rows are to be trained, and why.

    Args:
        wanted: `auto` judges the special tokens that the chat template writes; `none` is none.
        weight: The embedding, `[vocabulary, hidden]`.
        tokenizer: As `load_tokenizer` returns it.

    Raises:
        InputError: If a token that is asked for is not in the vocabulary.
    """
    if wanted == "none":
        return {}
    if wanted == "auto":
        special = list(tokenizer.added_tokens_decoder)
        in_use = weight[: len(tokenizer)]  # beyond it are rows that only fill up the vocabulary
        return find_untrained_rows(in_use, find_chat_tokens(tokenizer), special)
    vocabulary = tokenizer.get_vocab()
    rows = len(weight)
    unknown = [token for token in wanted if vocabulary.get(token, rows) >= rows]
    require(not unknown, f"model.trainable_tokens: not in the vocabulary: {', '.join(unknown)}")
    return {vocabulary[token]: "asked for" for token in wanted}


def find_untrained_rows(
    weight: Tensor, candidates: list[int], special_ids: list[int]
) -> dict[int, str]:
    """Return which of some rows look untrained, and why.

    The rows of tokens that never occur are all pushed the same way by the softmax, or were all set
    to one value, so that they are near copies of one another (Land and Bartolo, 2024, "Fishing for
    Magikarp"); or they were never written and are near zero. Trained rows are neither:

    - *faint*: the norm is under a tenth of the median norm of the ordinary rows;
    - *a copy*: the cosine to the row of another special token is nearer to 1 than to the cosine
      that 99 % of the ordinary rows stay under with their own nearest neighbour.

    A single untrained token whose row is random, with no fellow to be alike to, is not found.

    Args:
        weight: The embedding, `[vocabulary, hidden]`.
        candidates: Token ids to judge.
        special_ids: All special tokens of the vocabulary, used by the data or not.
    """
    special = torch.tensor(sorted(set(special_ids) | set(candidates)), device=weight.device)
    ordinary = _sample_ordinary_rows(weight, special)
    median = ordinary.norm(dim=1).median().item()
    typical = _typical_nearest_cosine(ordinary)
    rows = normalize(weight[special].float(), dim=1)
    reasons = {}
    for token in sorted(set(candidates)):
        row = weight[token].float()
        norm = row.norm().item()
        cosines = (rows @ normalize(row, dim=0))[special != token]
        nearest = cosines.max().item() if len(cosines) else 0.0
        if norm < FAINT * median:
            reasons[token] = f"its norm is {norm:.2g}, that of trained rows {median:.2g}"
        elif nearest > (1 + typical) / 2:
            reasons[token] = (
                f"it has a cosine of {nearest:.3f} to another special token's row, trained rows "
                f"stay under {typical:.3f}"
            )
    return reasons


def _sample_ordinary_rows(weight: Tensor, special: Tensor) -> Tensor:
    is_ordinary = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    is_ordinary[special] = False
    ids = is_ordinary.nonzero().squeeze(1)
    return weight[ids[:: max(1, len(ids) // SAMPLED_ROWS)]].float()


def _typical_nearest_cosine(rows: Tensor) -> float:
    """Return how near most of the rows, `[rows, hidden]`, are to another one."""
    directions = normalize(rows, dim=1)
    cosines = directions @ directions.T
    cosines.fill_diagonal_(-1.0)
    return cosines.max(dim=1).values.quantile(TYPICAL_SHARE).item()
