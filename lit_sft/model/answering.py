"""Let a model in training answer prompts, as itself and with the tokens that end an answer."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from lit_sft.data.prompts import find_stop_ids
from lit_sft.errors import InputError
from lit_sft.evaluation.evaluating import evaluating
from lit_sft.evaluation.generate import Generation, generate_greedy
from lit_sft.model.fast.attention import use_attention

if TYPE_CHECKING:
    from peft import PeftModel


def answer_greedily(
    model: "PeftModel",
    tokenizer: PreTrainedTokenizerBase | None,
    autocast: AbstractContextManager[None],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    max_batch_tokens: int,
) -> list[Generation]:
    """Answer prompts greedily, and leave modes and random states as they were.

    Args:
        model: In whatever mode.
        tokenizer: As `load_tokenizer` returns it.
        autocast: The precision that it is trained in.
        prompts: Token ids, generation prompt included.
        max_new_tokens: Of an answer.
        max_batch_tokens: Rows times their longest length, of a batch.

    Raises:
        InputError: If there is no tokenizer.
    """
    if tokenizer is None:
        raise InputError("generation takes a data module with a tokenizer, such as SFTDataModule")
    use_attention(model, packed=False)
    config, of_generation = model.config, model.generation_config
    stop_ids = find_stop_ids(tokenizer, config.get_text_config(), config, of_generation)
    pad_id = tokenizer.pad_token_id
    # With a cache that grows, all shapes are new to compiled layers.
    with evaluating(model), autocast, torch.compiler.set_stance("force_eager"):
        return generate_greedy(model, prompts, stop_ids, pad_id, max_new_tokens, max_batch_tokens)
