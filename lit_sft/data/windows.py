"""Which rows an optimizer step sees, and how they reach the model."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from lit_sft.data.batching import pack_batch, pad_batch, share_evenly, share_out
from lit_sft.data.encoded_rows import EncodedRows
from lit_sft.data.workers import end_at_exit, make_context
from lit_sft.types import Example, Prompt, Window


class WindowSampler(DistributedSampler[list[int]]):
    """The row numbers of one rank, a window at a time.

    An epoch is one permutation of all rows, a function of `seed` and the epoch alone, cut into
    windows of `window_rows`, which hold the same rows on any number of ranks. Each rank takes as
    many rows of a window, but for one, and about as many tokens, where their lengths are known. No
    row is repeated and none is left out: the last window may be short, and on some ranks empty.

    It is a `DistributedSampler` so that Lightning does not share out the shares once more.

    Args:
        num_rows: Rows of the split.
        window_rows: Rows of a whole window, over all ranks.
        seed: Decides the order; None keeps file order.
        rank: Of this process.
        world_size: Number of processes.
        first_window: Where the first pass begins: a run that is resumed in the middle of an epoch
            needs no other memory of its position.
        lengths: Tokens of each row; without them, each rank takes every `world_size`-th row.
    """

    def __init__(
        self,
        num_rows: int,
        window_rows: int,
        seed: int | None,
        rank: int = 0,
        world_size: int = 1,
        first_window: int = 0,
        lengths: Sequence[int] | None = None,
    ) -> None:
        rows: Any = range(num_rows)
        super().__init__(rows, num_replicas=world_size, rank=rank)
        self.num_rows, self.window_rows, self.order_seed = num_rows, window_rows, seed
        self.first_window, self.lengths = first_window, lengths

    def __len__(self) -> int:
        return -(-self.num_rows // self.window_rows)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        begin, self.first_window = self.first_window * self.window_rows, 0
        for start in range(begin, self.num_rows, self.window_rows):
            yield self._share(order[start : start + self.window_rows].tolist())

    def _share(self, window: list[int]) -> list[int]:
        """Return this rank's rows of a window."""
        if self.lengths is None:
            return window[self.rank :: self.num_replicas]
        lengths = [self.lengths[row] for row in window]
        return [window[place] for place in share_evenly(lengths, self.num_replicas)[self.rank]]

    def _order(self) -> Tensor:
        """Return int64 `[rows]`: 8 bytes a row, also of a stream, are what a full shuffle costs."""
        if self.order_seed is None:
            return torch.arange(self.num_rows)
        generator = torch.Generator().manual_seed(self.order_seed * 1_000_003 + self.epoch)
        return torch.randperm(self.num_rows, generator=generator)


def list_lengths(rows: object) -> list[int] | None:
    """Return the tokens of each row, or None of rows that are not encoded yet.

    Args:
        rows: Of a split, or a `Subset` of them.
    """
    if isinstance(rows, Subset):
        whole = list_lengths(rows.dataset)
        return None if whole is None else [whole[row] for row in rows.indices]
    return rows.lengths() if isinstance(rows, EncodedRows) else None


class PaddedWindows(Dataset[Window]):
    """Encoded rows, read a window at a time, in micro-batches of a fixed number of padded rows.

    Args:
        rows: Encoded rows of a split.
        batch_size: Rows of a micro-batch.
        pad_token_id: Fills the right of the shorter rows.
    """

    def __init__(self, rows: Sequence[Example], batch_size: int, pad_token_id: int) -> None:
        self.rows, self.batch_size, self.pad_token_id = rows, batch_size, pad_token_id

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: Sequence[int]) -> Window:
        return self.make([self.rows[i] for i in numbers])

    def make(self, examples: Sequence[Example]) -> Window:
        """Return the micro-batches of a window."""
        return [
            pad_batch(examples[k : k + self.batch_size], self.pad_token_id)
            for k in range(0, len(examples), self.batch_size)
        ]


class PackedWindows(Dataset[Window]):
    """Encoded rows, read a window at a time, end to end in as few passes as memory allows.

    The gradient is that of `PaddedWindows`, without its padding and with fewer launches.

    Args:
        rows: Encoded rows of a split.
        max_tokens_per_pass: What is run at once.
    """

    def __init__(self, rows: Sequence[Example], max_tokens_per_pass: int) -> None:
        self.rows, self.max_tokens_per_pass = rows, max_tokens_per_pass

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: Sequence[int]) -> Window:
        return self.make([self.rows[i] for i in numbers])

    def make(self, examples: Sequence[Example]) -> Window:
        """Return the passes of a window."""
        passes = share_out([len(x.input_ids) for x in examples], self.max_tokens_per_pass)
        return [pack_batch([examples[row] for row in rows]) for rows in passes if rows]


class PromptLists(Dataset[list[Prompt]]):
    """Prompts, read a list at a time, as `WindowSampler` shares them out.

    Args:
        prompts: In order.
    """

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, numbers: Sequence[int]) -> list[Prompt]:
        return [self.prompts[number] for number in numbers]


class WindowLoader(DataLoader[Window]):
    """A loader without a state: the windows to come are a function of the steps taken.

    What workers have read ahead when a run is killed is read again by the run that resumes it, so
    their number makes no difference either.
    """

    def state_dict(self) -> dict[str, object]:
        """Return nothing; having it tells Lightning that resuming is taken care of."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Do nothing: `WindowSampler.first_window` is the position."""

    def __iter__(self) -> Any:
        """Return the batches; their workers, if any, are gone before the process waits for them."""
        if not self.num_workers:
            return super().__iter__()
        if self.multiprocessing_context is None:
            self.multiprocessing_context = make_context()
        batches: Any = super().__iter__()
        end_at_exit(batches)
        return batches
