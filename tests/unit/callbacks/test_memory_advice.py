"""The advice has numbers that differ from the run's, and that a run can have."""

import pytest

from lit_sft import SFTDataModule, WordProblems
from lit_sft.callbacks.memory_advice import advise_sizes


@pytest.mark.parametrize(
    ("sizes", "advice"),
    [
        ({}, "--data.max_tokens_per_pass 1024 (now 2048;"),
        ({"max_tokens_per_pass": 600}, "--data.max_tokens_per_pass 512 (now 600;"),
        ({"batch_size": 1}, "--data.max_length 256 --data.max_tokens_per_pass 256 "),
        (
            {"batching": "padded"},
            "--data.batch_size 2 --data.accumulate_grad_batches 8 (now 4 and 4;",
        ),
        (
            {"batching": "padded", "batch_size": 3},
            "--data.batch_size 1 --data.accumulate_grad_batches 12 (now 3 and 4;",
        ),
        ({"batching": "padded", "batch_size": 1}, "--data.max_length 256 "),
    ],
    ids=str,
)
def test_the_next_smaller_sizes(sizes, advice):
    assert advise_sizes(SFTDataModule(WordProblems(), **sizes)).startswith(advice)
