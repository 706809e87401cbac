"""What a run has to do: its steps and the rows of each, its validations and its answers."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np

from lit_sft.callbacks.generation_eval import GenerationEval
from lit_sft.data.batching import share_out
from lit_sft.data.datamodule import SFTDataModule
from lit_sft.data.encoded_rows import EncodedRows
from lit_sft.model.schedule import count_steps

SEEN_WINDOWS = 2000
"""Windows that are looked at, from the first on."""


SAMPLED_PROMPTS = 8
"""Of an evaluation, to see how long the base answers."""


class Training(NamedTuple):
    """The optimizer steps of a rank."""

    steps: int
    steps_per_epoch: int
    tokens: float
    """Of a step, on average, without padding."""
    supervised: float
    """Of these, the tokens that carry loss."""
    typical: list[list[int]]
    """The lengths of the rows of each pass, in a step of about as many tokens."""
    largest: list[int]
    """The lengths of the rows of the pass with the most tokens, padding included."""
    sizes: int
    """How many numbers of tokens the passes have, padding included."""


class Validations(NamedTuple):
    """The losses of the held-out rows."""

    times: int
    tokens: int
    """Of one, on a rank."""
    supervised: int


class Answers(NamedTuple):
    """What a `GenerationEval` generates in an evaluation, on a rank."""

    times: int
    """Evaluations; the first is of the base as it is."""
    prompts: list[int]
    """Tokens of each, the longest first."""
    references: float
    """Tokens of an answer as the rows have them, on average."""
    max_new_tokens: int
    sample: list[list[int]]
    """The tokens of some prompts."""


def plan_training(data: SFTDataModule, trainer: pl.Trainer) -> Training:
    """Look at the windows of a run as its loader makes them.

    Args:
        data: With `train` loaded.
        trainer: Whose limits count.
    """
    loader: Any = data.train_dataloader()
    per_epoch = limit_windows(len(loader.sampler), trainer.limit_train_batches)
    steps = count_steps(trainer.max_steps, trainer.max_epochs, per_epoch)
    rows = data.prepared["train"].encoded
    lengths, supervised = rows.lengths(), count_supervised(rows)
    windows = list(islice(_draw_windows(loader.sampler, per_epoch), min(steps, SEEN_WINDOWS)))
    # Of a stream, the rows that were looked at stand for all.
    drawn = [[number % len(lengths) for number in window] for window in windows]
    tokens = [sum(lengths[row] for row in window) for window in drawn]
    mean = sum(tokens) / len(tokens)
    passes = [cut_window([lengths[row] for row in window], data) for window in drawn]
    typical = min(range(len(drawn)), key=lambda window: abs(tokens[window] - mean))
    places = {count_places(rows, data) for window in passes for rows in window}
    return Training(
        steps,
        per_epoch,
        mean,
        sum(int(supervised[window].sum()) for window in drawn) / len(drawn),
        passes[typical],
        max((rows for window in passes for rows in window), key=lambda x: count_places(x, data)),
        len(places),
    )


def plan_validations(data: SFTDataModule, trainer: pl.Trainer, training: Training) -> Validations:
    """Return how often the loss of `val` is taken, as Lightning counts, and of how much."""
    val = data.prepared.get("val")
    if val is None or not trainer.limit_val_batches:
        return Validations(0, 0, 0)
    interval, every = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if isinstance(interval, float):
        interval = max(1, int(training.steps_per_epoch * interval))
    if every is None:
        count = training.steps // int(interval)
    else:
        epochs, rest = divmod(training.steps, training.steps_per_epoch)
        count = epochs * (training.steps_per_epoch // int(interval)) + rest // int(interval)
        count //= every
    windows = -(-len(val.encoded) // _count_rows(data))
    share = limit_windows(windows, trainer.limit_val_batches) / windows / trainer.world_size
    whole = len(val.encoded.input_ids), val.encoded.num_supervised()
    return Validations(count, int(whole[0] * share), int(whole[1] * share))


def plan_answers(
    evaluation: GenerationEval, data: SFTDataModule, max_new_tokens: int, training: Training
) -> Answers:
    """Return what an evaluation generates, and how often.

    Args:
        evaluation: After its `setup`.
        data: Whose tokenizer reads the answers of the rows.
        max_new_tokens: Of the module.
        training: Of the run.
    """
    every = evaluation.every_n_steps or training.steps_per_epoch
    tokenizer, prompts = data.tokenizer, evaluation.prompts
    said = [str(prompt.messages[-1].get("content", "")) for prompt in prompts]
    limit = evaluation.max_new_tokens or max_new_tokens
    tokens = [min(len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1, limit)
              for text in said]  # fmt: skip
    return Answers(
        1 + -(-training.steps // every),
        sorted((len(prompt.input_ids) for prompt in prompts), reverse=True),
        sum(tokens) / max(1, len(tokens)),
        limit,
        [prompt.input_ids for prompt in prompts[:: -(-len(prompts) // SAMPLED_PROMPTS)]],
    )


def find_longest(rows: EncodedRows, count: int) -> list[int]:
    """Return the positions of the longest rows, the longest first."""
    order: list[int] = np.argsort(-np.diff(rows.offsets), kind="stable")[:count].tolist()
    return order


def limit_windows(windows: int, limit: float | int) -> int:
    """Return how many windows a limit of Lightning's leaves, a share or a number."""
    return min(int(windows * limit) if isinstance(limit, float) else limit, windows)


def cut_window(lengths: Sequence[int], data: SFTDataModule) -> list[list[int]]:
    """Return the lengths of the rows of each pass of a window, as its loader would cut it."""
    if data.batching == "padding_free":
        shares = share_out(lengths, data.max_tokens_per_pass)
        return [[lengths[row] for row in share] for share in shares]
    size = data.batch_size
    return [list(lengths[k : k + size]) for k in range(0, len(lengths), size)]


def count_places(lengths: Sequence[int], data: SFTDataModule) -> int:
    """Return the tokens of a pass, padding included."""
    return sum(lengths) if data.batching == "padding_free" else max(lengths) * len(lengths)


def count_supervised(rows: EncodedRows) -> np.ndarray:
    """Return the tokens that carry loss, int64 `[rows]`."""
    counts: np.ndarray = np.add.reduceat(rows.supervised, rows.offsets[:-1], dtype=np.int64)
    return counts


def _count_rows(data: SFTDataModule) -> int:
    return data.batch_size * data.accumulate_grad_batches


def _draw_windows(sampler: Any, per_epoch: int) -> Iterator[list[int]]:
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        yield from islice(iter(sampler), per_epoch)
        epoch += 1
