"""Greedy generation in batches, as large as memory allows."""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import LongTensor, Tensor, nn
from transformers import Cache

from lit_sft.errors import require

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
"""How CUDA, the CPU allocators and cuBLAS say it, in lower case."""

COMPACT_BELOW = 0.9
"""Finished rows leave once fewer than this share of a batch's rows goes on: selecting the others
copies the cache once, about what appending to it costs at every step."""


Past = dict[str, Cache]
"""The cache that the model made for itself, by the name that its `forward` takes it back under:
`past_key_values` in older releases of transformers, `cache` from 5.24 on."""


class Generation(NamedTuple):
    """What a model said to one prompt."""

    token_ids: list[int]
    """`[tokens]`, at most `max_new_tokens`, without the stop token."""
    finished: bool
    """Whether the model stopped by itself, rather than at the token limit."""


class Ending(NamedTuple):
    """How answers of a batch end."""

    stop_ids: tuple[int, ...]
    pad_id: int
    max_new_tokens: int


Tell = Callable[[int, int], None]
"""Is told how many answers have ended, and how many there will be, as often as that changes."""
TellEnded = Callable[[int], None]
"""Likewise, of the answers of one batch."""
GenerateBatch = Callable[[nn.Module, Sequence[Sequence[int]], Ending, TellEnded], list[Generation]]


def generate_greedy(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    max_batch_tokens: int,
    generate_batch: "GenerateBatch | None" = None,
    tell: Tell | None = None,
) -> list[Generation]:
    """Continue prompts with the likeliest token until a stop token or the token limit.

    Every row gets the tokens that `model.generate(do_sample=False)` gives it alone, whatever
    `model.generation_config` asks for. Nothing is sampled, so no random state advances; the model's
    config is not changed. Where memory runs out, the batches get smaller, with one warning.

    Args:
        model: A causal language model of transformers, or a `peft.PeftModel` around one, wholly in
            eval mode (see `evaluating`); its attention must honour `attention_mask`.
        prompts: Token ids of each prompt, unpadded, none empty.
        stop_ids: Tokens that end an answer.
        pad_id: Stands on the left of shorter prompts, where attention does not look.
        max_new_tokens: The limit of each answer, the stop token included.
        max_batch_tokens: Limits rows x (longest prompt + `max_new_tokens`) of a batch: the size of
            its cache. A row that is larger by itself runs alone.
        generate_batch: What continues a batch; without one, any model's own cache that grows.
        tell: Is told how far it is.

    Returns:
        One `Generation` a prompt, in the order of the prompts.

    Raises:
        InputError: If a limit is not positive, a prompt is empty, or the model is in training mode.
        FloatingPointError: If the logits are NaN or infinite.
        RuntimeError: If one row alone does not fit into memory.
    """
    _check_request(model, prompts, max_new_tokens, max_batch_tokens)
    ending = Ending(tuple(stop_ids), pad_id, max_new_tokens)
    one_batch = generate_batch or _generate_batch
    answers = _generate_all(model, prompts, ending, max_batch_tokens, one_batch, tell)
    return [answers[row] for row in range(len(prompts))]


def _check_request(
    model: nn.Module, prompts: Sequence[Sequence[int]], max_new_tokens: int, max_batch_tokens: int
) -> None:
    require(max_new_tokens > 0, f"max_new_tokens must be positive, got {max_new_tokens}")
    require(max_batch_tokens > 0, f"max_batch_tokens must be positive, got {max_batch_tokens}")
    empty = [str(row) for row, prompt in enumerate(prompts) if not prompt]
    require(not empty, f"nothing to continue: the prompts {', '.join(empty[:8])} are empty")
    require(
        not any(module.training for module in model.modules()),
        "the model is in training mode, where dropout would decide the answers; generate within "
        "`with evaluating(model):`",
    )


def _generate_all(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    ending: Ending,
    max_batch_tokens: int,
    generate_batch: GenerateBatch,
    tell: Tell | None,
) -> dict[int, Generation]:
    """Return the generation of each prompt, by its number."""
    answers: dict[int, Generation] = {}

    def tell_ended(rows: int) -> None:
        if tell:
            tell(len(answers) + rows, len(prompts))

    # Longest first: where memory is short, the first batch shows it.
    waiting = sorted(range(len(prompts)), key=lambda row: len(prompts[row]), reverse=True)
    budget = max_batch_tokens
    while waiting:
        width = len(prompts[waiting[0]]) + ending.max_new_tokens
        rows = waiting[: max(1, budget // width)]
        batch = [prompts[row] for row in rows]
        generations = _generate_if_it_fits(model, batch, ending, generate_batch, tell_ended)
        if generations is not None:
            answers |= zip(rows, generations, strict=True)
            tell_ended(0)
            waiting = waiting[len(rows) :]
            continue
        told = budget < max_batch_tokens
        budget = len(rows) * width // 2
        if not told:
            warnings.warn(
                f"generation ran out of memory with {len(rows)} rows of {width} tokens; it goes on "
                f"with at most {budget} tokens a batch (max_batch_tokens was {max_batch_tokens})",
                stacklevel=3,
            )
    return answers


def _generate_if_it_fits(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    ending: Ending,
    generate_batch: GenerateBatch,
    tell_ended: TellEnded,
) -> list[Generation] | None:
    """Return the generations of one batch, or None where it ran out of memory with several rows."""
    try:
        return generate_batch(model, prompts, ending, tell_ended)
    except (RuntimeError, MemoryError) as error:
        if len(prompts) == 1 or not _is_out_of_memory(error):
            raise
    # Only now, with the error and the tensors of its frames gone, is there anything to release.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(phrase in str(error).lower() for phrase in OUT_OF_MEMORY)


@torch.no_grad()
def _generate_batch(
    model: nn.Module, prompts: Sequence[Sequence[int]], ending: Ending, tell_ended: TellEnded
) -> list[Generation]:
    stop_ids, pad_id, max_new_tokens = ending
    device = next(model.parameters()).device
    tokens, attention_mask = _pad_left(prompts, pad_id, max_new_tokens, device)
    position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    stops = torch.tensor(stop_ids, dtype=torch.int64, device=device)
    answers = torch.full((len(prompts), max_new_tokens), pad_id, device=device)
    lengths = torch.full((len(prompts),), max_new_tokens, device=device)
    rows = torch.arange(len(prompts), device=device)  # which prompt each row of the batch continues
    running = torch.ones_like(rows, dtype=torch.bool)
    longest, past = tokens.shape[1], Past()

    for step in range(max_new_tokens):
        seen = longest + step
        positions = position_ids[:, seen - tokens.shape[1] : seen]
        logits, past = take_step(model, tokens, attention_mask[:, :seen], positions, past)
        likeliest, is_finite = find_likeliest(logits)
        require_finite((is_finite | ~running).all())
        answers[rows, step] = likeliest
        stopped = running & torch.isin(likeliest, stops)
        lengths[rows[stopped]] = step
        running = running & ~stopped
        going_on = int(running.sum())
        tell_ended(len(prompts) - going_on)
        if going_on == 0:
            break
        if going_on < COMPACT_BELOW * len(rows):
            keep = cast(LongTensor, running.nonzero().squeeze(1))
            for cache in past.values():
                # Not `batch_select_indices`: it leaves the states of linear attention behind.
                cache.reorder_cache(keep)
            rows, running, likeliest = rows[keep], running[keep], likeliest[keep]
            attention_mask, position_ids = attention_mask[keep], position_ids[keep]
        tokens = likeliest[:, None]
    return [
        Generation(row[:length], finished=length < max_new_tokens)
        for row, length in zip(answers.tolist(), lengths.tolist(), strict=True)
    ]


def _pad_left(
    prompts: Sequence[Sequence[int]], pad_id: int, max_new_tokens: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return int64 `[rows, longest]` ids, and the mask of the whole generation.

    The mask is int64 `[rows, longest + max_new_tokens]`; 0 on the padding alone.
    """
    longest = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), longest), pad_id, dtype=torch.int64)
    attention_mask = torch.ones(len(prompts), longest + max_new_tokens, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        padding = longest - len(prompt)
        input_ids[row, padding:] = torch.tensor(prompt)
        attention_mask[row, :padding] = 0
    return input_ids.to(device), attention_mask.to(device)


def take_step(
    model: nn.Module, tokens: Tensor, attention_mask: Tensor, positions: Tensor, past: Past
) -> tuple[Tensor, Past]:
    """Run the model over int64 `[rows, new]` tokens, the first time without a past.

    Returns:
        The logits after the last token, `[rows, vocabulary]`, and the past with the new tokens.

    Raises:
        InputError: If the model gives no cache to go on from.
    """
    output = model(
        input_ids=tokens,
        attention_mask=attention_mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **past,
    )
    name = "cache" if "cache" in output else "past_key_values"
    require(
        name in output,
        f"{type(model).__name__} gives no cache of what it has read, which generating takes; take "
        "GenerationEval out of trainer.callbacks",
    )
    return output.logits[:, -1], {name: output[name]}


def find_likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the likeliest tokens, and whether there is one; nothing waits for the device.

    Args:
        logits: `[rows, vocabulary]`, compared in float32 as transformers' `generate` does.

    Returns:
        int64 `[rows]`, and bool `[rows]`: False where a row has a NaN, a +inf or nothing but -inf;
        a single -inf is how models mask unused tokens.
    """
    logits = logits.float()
    likeliest = logits.argmax(-1)
    best = logits.gather(-1, likeliest[:, None]).squeeze(-1)  # NaN counts as the largest
    return likeliest, best.isfinite()


def require_finite(are_finite: Tensor) -> None:
    """Raise `FloatingPointError` where logits are not; `are_finite` is a bool of shape `[]`."""
    if not bool(are_finite):
        raise FloatingPointError(
            "the logits of the model are NaN or infinite, so it cannot answer: its weights have "
            "diverged or overflow their dtype; go back to an earlier checkpoint, or lower the "
            "learning rate"
        )
