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
