"""Let a model in training answer prompts, as itself and with the tokens that end an answer."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lit_sft.data.prompts import find_stop_ids, split_answer
from lit_sft.errors import InputError
from lit_sft.evaluation.decode import decode_batch
from lit_sft.evaluation.evaluating import evaluating
from lit_sft.evaluation.generate import Generation, Tell, generate_greedy
from lit_sft.evaluation.static_cache import UnfitModelError
from lit_sft.evaluation.token_probabilities import weigh_tokens
from lit_sft.model.fast.attention import use_attention
from lit_sft.model.fast.cross_entropy import LogitScale
from lit_sft.model.fast.lora import rounded_updates
from lit_sft.model.fast.memory import free_memory_bytes
from lit_sft.model.sharded.in_step import is_sharded, keep_in_step
from lit_sft.types import Prompt

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

WEIGHED_TOKENS = 2**12
"""Of the answers whose tokens are weighed at once: enough for a device, and few beside a batch."""
BATCH_TOKENS = 2**15
"""Of a batch of answers at the least, where memory allows it."""


def answer_greedily(
    model: "PeftModel | PreTrainedModel",
    tokenizer: PreTrainedTokenizerBase | None,
    autocast: AbstractContextManager[None],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    max_batch_tokens: Literal["auto"] | int = "auto",
    tell: Tell | None = None,
) -> list[Generation]:
    """Answer prompts greedily, and leave modes and random states as they were.

    Args:
        model: In whatever mode.
        tokenizer: As `load_tokenizer` returns it.
        autocast: The precision that it is trained in.
        prompts: Token ids, generation prompt included.
        max_new_tokens: Of an answer.
        max_batch_tokens: Rows times their longest length, of a batch; `auto` is 32,768, and on a
            GPU as many as half of the free memory holds keys and values of.
        tell: Is told how far it is.

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
    device = next(model.parameters()).device
    if max_batch_tokens == "auto":
        max_batch_tokens = count_cached_tokens(config.get_text_config(), device)
    eager = torch.compiler.set_stance("force_eager")
    with evaluating(model), autocast, eager, keep_in_step(model), rounded_updates(model):
        generate = partial(generate_greedy, model, prompts, stop_ids, pad_id, max_new_tokens)
        if device.type == "cuda":
            one_batch = None if is_sharded(model) else decode_batch  # a graph waits for no rank
            with suppress(UnfitModelError), _memory_of_its_own():
                return generate(max_batch_tokens, one_batch, tell)
        return generate(max_batch_tokens, tell=tell)


def weigh_pieces(
    model: "PeftModel | PreTrainedModel",
    tokenizer: PreTrainedTokenizerBase,
    autocast: AbstractContextManager[None],
    answered: Sequence[tuple[Prompt, Generation]],
    logit_scale: LogitScale,
) -> dict[int, list[tuple[str, float]]]:
    """Return the pieces of answers by row, with how likely each was; all is left as it was.

    Those that memory does not hold are left out.

    Args:
        model: In whatever mode.
        tokenizer: As `load_tokenizer` returns it.
        autocast: The precision that it is trained in.
        answered: Prompts, and the answers to them.
        logit_scale: What the model makes of its head's output.
    """
    use_attention(model, packed=False)
    split = [(*x, split_answer(tokenizer, list(x[1].token_ids))) for x in answered]
    split = [x for x in split if x[2]]  # an answer may have no pieces
    rows = [(prompt.input_ids, answer.token_ids) for prompt, answer, _ in split]
    likely: list[list[float]] = []
    longest = max((len(prompt) + len(answer) for prompt, answer in rows), default=1)
    at_once = max(1, WEIGHED_TOKENS // longest)
    stance = torch.compiler.set_stance("force_eager")
    in_step = keep_in_step(model)
    with suppress(torch.OutOfMemoryError), evaluating(model), autocast, stance, in_step:
        for at in range(0, len(rows), at_once):
            likely += weigh_tokens(model, rows[at : at + at_once], logit_scale.apply)
    return {
        prompt.row: [(piece, round(p, 3)) for piece, p in zip(pieces, of_row, strict=True)]
        for (prompt, _, pieces), of_row in zip(split, likely, strict=False)
    }


@contextmanager
def _memory_of_its_own() -> Iterator[None]:
    """Give the device what training has left in pieces, and what answers leave back to training."""
    torch.cuda.empty_cache()
    try:
        yield
    finally:
        torch.cuda.empty_cache()


def count_cached_tokens(config: PretrainedConfig, device: torch.device) -> int:
    """Return how many tokens of keys and values a batch of answers may have.

    Args:
        config: Of the text model.
        device: Where it is.
    """
    if device.type != "cuda":
        return BATCH_TOKENS
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads)
    return max(BATCH_TOKENS, int(free_memory_bytes(device) / 2 / (kept * width * 2)))
