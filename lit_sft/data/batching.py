"""Examples to batches. Pure functions: no loader, no device, no Lightning."""

from collections.abc import Sequence

import numpy as np
import torch

from lit_sft.types import IGNORE_INDEX, Batch, Example


def pad_batch(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """Lay examples side by side, padded on the right to the longest.

    There is no attention mask: with causal attention no real token looks to its right, where the
    padding is, and no label stands on padding. The batch is exact, and attention keeps its fastest
    path.

    Args:
        examples: At least one.
        pad_token_id: Fills `input_ids`; `labels` are filled with `IGNORE_INDEX`.

    Returns:
        Tensors `[batch, tokens]` and their counts.
    """
    longest = max(len(example.input_ids) for example in examples)
    # NumPy reads a Python list several times faster than torch does.
    input_ids = np.full((len(examples), longest), pad_token_id, dtype=np.int64)
    labels = np.full((len(examples), longest), IGNORE_INDEX, dtype=np.int64)
    for row, example in enumerate(examples):
        input_ids[row, : len(example.input_ids)] = example.input_ids
        labels[row, : len(example.labels)] = example.labels
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        num_tokens=sum(len(example.input_ids) for example in examples),
        num_supervised=int((labels[:, 1:] != IGNORE_INDEX).sum()),
    )


def pack_batch(examples: Sequence[Example]) -> Batch:
    """Lay examples end to end, without padding.

    The first token of a row is no target: what comes before it belongs to another row.

    Args:
        examples: At least one.

    Returns:
        Tensors `[1, tokens]`, their boundaries, and their counts.
    """
    lengths = [len(example.input_ids) for example in examples]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    input_ids = np.concatenate([np.asarray(x.input_ids, dtype=np.int64) for x in examples])
    labels = np.concatenate([np.asarray(x.labels, dtype=np.int64) for x in examples])
    labels[starts[:-1]] = IGNORE_INDEX
    return Batch(
        input_ids=torch.from_numpy(input_ids)[None],
        labels=torch.from_numpy(labels)[None],
        cu_seq_lens=torch.from_numpy(starts.astype(np.int32)),
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        max_length=max(lengths),
        num_tokens=len(input_ids),
        num_supervised=int((labels != IGNORE_INDEX).sum()),
    )


def share_out(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Share rows out to as few passes as their tokens need, of about equal size.

    The longest row goes first, each to the pass that has the fewest tokens (Graham, 1969).

    Args:
        lengths: Tokens of each row.
        max_tokens: Of a pass; a row that is longer has a pass to itself.

    Returns:
        The positions of the rows of each pass, in order.
    """
    longest_first = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for count in range(max(1, -(-sum(lengths) // max_tokens)), len(lengths) + 1):
        passes: list[list[int]] = [[] for _ in range(count)]
        sizes = [0] * count
        for row in longest_first:
            lightest = sizes.index(min(sizes))
            passes[lightest].append(row)
            sizes[lightest] += lengths[row]
        if all(
            size <= max_tokens or len(rows) == 1 for size, rows in zip(sizes, passes, strict=True)
        ):
            return [sorted(rows) for rows in passes]
    return [[row] for row in range(len(lengths))]


def share_evenly(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Share rows out to ranks, as many to each but for one, and about as many tokens.

    All wait for the rank that has the most. Of each round of as many rows as there are ranks, the
    longest first, the longest goes to the rank that has the fewest tokens until then.

    Args:
        lengths: Tokens of each row.
        ranks: How many.

    Returns:
        The positions of the rows of each rank, in order.
    """
    longest_first = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    shares: list[list[int]] = [[] for _ in range(ranks)]
    sizes = [0] * ranks
    for start in range(0, len(lengths), ranks):
        lightest_first = sorted(range(ranks), key=lambda rank: sizes[rank])
        for row, rank in zip(longest_first[start : start + ranks], lightest_first, strict=False):
            shares[rank].append(row)
            sizes[rank] += lengths[row]
    return [sorted(rows) for rows in shares]
