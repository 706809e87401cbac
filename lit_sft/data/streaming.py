"""Loaders of windows; and rows that stay on the disk, and are encoded when a step needs them.

A stream here is no iterator: rows have numbers, and `WindowSampler` says which of them a step sees.
So a stream is shuffled whole, resumed exactly in the middle of an epoch, and shared by ranks and
workers without overlap or loss, by the same code as rows in memory.

The other way would have been to encode all rows once, in chunks, into a file that is mapped into
memory. For a JSON-lines file of 2 GB, 3.6 million rows, that is 17 minutes of a core and 3 GB on
the disk before the first step; here it is 3 seconds to find where the lines start and to hash them,
and 0.2 on the next start (`tests/benchmarks/streaming.py`). The price: a row whose mask cannot be
proven is found when its turn comes, though 1,024 rows are looked at before training, and a row that
is too long leaves a gap in its window. What a task holds in memory, such as the rows of CSV, stays
there.

Rows that stay on the disk can change there. All of them are hashed when they are first looked at
(`hash_contents`): a run is resumed on the rows it had, wherever their files lie by then,
and one that reads a file when it is changed ends. Of rows that a task makes one by one, in a
sequence of its own without a method `hash_contents`, a sample is compared, and that is said.
"""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from lit_sft.data.row_policy import RowPolicy, encode_to_fit
from lit_sft.data.splits import read_conversations
from lit_sft.data.vocabulary import require_embeddings
from lit_sft.data.windows import (
    PackedWindows,
    PaddedWindows,
    WindowLoader,
    WindowSampler,
)
from lit_sft.data.workers import leave_signals_to_the_trainer
from lit_sft.errors import InputError
from lit_sft.tasks.base import ChatTask, NamedRow
from lit_sft.types import Example, Window


class StreamedRows:
    """Rows of a task, read and encoded by their numbers.

    Args:
        task: Whose rows they are.
        rows: Each is read when it is asked for.
        tokenizer: As `load_tokenizer` returns it.
        policy: What becomes of a row, as for `encode_to_fit`; one that is too long and must not be
            is an error when its turn comes.
        num_embeddings: Rows of the base's embedding, one for each token that may occur; None looks
            at no token.
    """

    def __init__(
        self,
        task: ChatTask,
        rows: Sequence[NamedRow],
        tokenizer: PreTrainedTokenizerBase,
        policy: RowPolicy,
        num_embeddings: int | None = None,
    ) -> None:
        self.task, self.rows = task, rows
        self.tokenizer, self.policy = tokenizer, policy
        self.num_embeddings = num_embeddings

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, numbers: Sequence[int]) -> tuple[list[Example], list[str]]:
        """Return examples, their masks proven, and what is wrong with the rows that are left out.

        Raises:
            InputError: If a row cannot be read, or its mask not be proven; the message names it.
        """
        if not numbers:  # what a rank has of a short last window
            return [], []
        conversations = read_conversations(self.task, [self.rows[number] for number in numbers])
        names, chats = zip(*conversations, strict=True)
        fitted = encode_to_fit(self.tokenizer, chats, names, self.policy)
        unfit = [pair for pair in zip(names, fitted, strict=True) if pair[1].example is None]
        max_length = self.policy.max_length
        long = [name for name, row in unfit if row.length > max_length]
        if long and self.policy.on_overlength == "error":
            raise InputError(f"{', '.join(long)}: longer than data.max_length={max_length} tokens")
        for name, row in zip(names, fitted, strict=True):
            if row.example and self.num_embeddings:
                require_embeddings(
                    self.tokenizer, row.example.input_ids, self.num_embeddings, f"in {name}"
                )
        left_out = [
            f"{name} is longer than data.max_length"
            if row.length > max_length
            else f"{name} holds {', '.join(map(repr, row.markers))} (data.on_marker)"
            if row.markers and self.policy.on_marker == "drop"
            else f"{name} has a bad call, {', '.join(row.bad_calls)} (data.on_bad_call)"
            for name, row in unfit
        ]
        return [row.example for row in fitted if row.example], left_out


class StreamedWindows(Dataset[Any]):
    """Streamed rows, a window at a time, with what is wrong with those left out.

    What is wrong with a row comes as an item, too: an error that a worker raises would reach the
    user as a traceback.

    Args:
        rows: Of a split.
        windows: Makes the batches.
    """

    def __init__(self, rows: StreamedRows, windows: PackedWindows | PaddedWindows) -> None:
        self.rows, self.windows = rows, windows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: Sequence[int]) -> tuple[Window, list[str]] | InputError:
        try:
            examples, left_out = self.rows.read(numbers)
        except InputError as error:
            return error
        return self.windows.make(examples), left_out


class StreamLoader(WindowLoader):
    """Hands out the windows of `StreamedWindows`, and says which rows were left out."""

    def __iter__(self) -> Any:
        if self.num_workers:
            # The tokenizer's own threads do not survive the fork, and it would complain.
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        left_out = 0
        for item in super().__iter__():
            if isinstance(item, InputError):
                raise item
            window, unfit = item
            for reason in unfit:
                left_out += 1
                if str(left_out).strip("0") == "1":  # the 1st, the 10th, the 100th
                    warnings.warn(
                        f"{reason}: left out, as {left_out:,} so far on this rank",
                        stacklevel=2,
                    )
            yield window


def make_loader(
    rows: object, windows: PackedWindows | PaddedWindows, sampler: WindowSampler, num_workers: int
) -> DataLoader[Window]:
    """Return the loader of a split's windows, wherever its rows lie.

    Args:
        rows: `EncodedRows`, or a subset of them, in which `windows` looks; or `StreamedRows`.
        windows: Makes the batches.
        sampler: Says which rows a window has.
        num_workers: Loader processes; 0 loads in this one.
    """
    dataset: Dataset[Any] = windows
    loader = WindowLoader
    if isinstance(rows, StreamedRows):
        loader, dataset = StreamLoader, StreamedWindows(rows, windows)
    return loader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        worker_init_fn=leave_signals_to_the_trainer,
        pin_memory=torch.cuda.is_available(),
    )
