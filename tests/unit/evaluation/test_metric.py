import math
from copy import deepcopy

import pytest
import torch

from lit_sft.errors import InputError
from lit_sft.evaluation.metric import GSM8KExactMatch

PREDICTIONS = ["#### 18", "it is 18.", "#### 17", "no idea", "#### 18 in 3 days"]
REFERENCES = ["a\n#### 18"] * 5


def as_floats(metric: GSM8KExactMatch) -> dict[str, float]:
    return {name: round(value.item(), 6) for name, value in metric.compute().items()}


def test_shares_are_of_all_rows():
    metric = GSM8KExactMatch()
    metric.update(PREDICTIONS, REFERENCES)
    assert as_floats(metric) == {"exact_match": 0.4, "exact_match_flexible": 0.4, "no_answer": 0.4}


def test_updates_add_up_however_they_are_cut():
    at_once, one_by_one = GSM8KExactMatch(), GSM8KExactMatch()
    at_once.update(PREDICTIONS, REFERENCES)
    for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True):
        one_by_one.update([prediction], [reference])
    one_by_one.update([], [])
    assert as_floats(at_once) == as_floats(one_by_one)
    assert one_by_one.total == 5


def test_forward_gives_the_batch_and_keeps_the_sum():
    metric = GSM8KExactMatch()
    assert metric(PREDICTIONS[:1], REFERENCES[:1])["exact_match"] == 1.0
    assert metric(PREDICTIONS[2:3], REFERENCES[:1])["exact_match"] == 0.0
    assert metric.compute()["exact_match"] == 0.5


def test_two_ranks_of_unequal_size_give_the_share_of_all_rows():
    whole, first, second = GSM8KExactMatch(), GSM8KExactMatch(), GSM8KExactMatch()
    whole.update(PREDICTIONS, REFERENCES)
    first.update(PREDICTIONS[:4], REFERENCES[:4])
    second.update(PREDICTIONS[4:], REFERENCES[4:])
    first.merge_state(second)
    assert as_floats(first) == as_floats(whole)


def exchange_and_compute(rank: int, address: str, expected: dict[str, float]) -> None:
    store = torch.distributed.FileStore(address, 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    mine = slice(0, 4) if rank == 0 else slice(4, 5)
    metric = GSM8KExactMatch()
    metric.update(PREDICTIONS[mine], REFERENCES[mine])
    assert as_floats(metric) == expected  # an error here fails the spawn, and so the test
    torch.distributed.destroy_process_group()


def test_two_processes_compute_the_share_of_all_rows(tmp_path):
    whole = GSM8KExactMatch()
    whole.update(PREDICTIONS, REFERENCES)
    arguments = (str(tmp_path / "store"), as_floats(whole))
    torch.multiprocessing.spawn(exchange_and_compute, args=arguments, nprocs=2)


def test_nothing_graded_is_nan_not_zero():
    metric = GSM8KExactMatch()
    metric.update([], [])
    assert all(math.isnan(value) for value in as_floats(metric).values())


def test_reset_and_copies_start_over():
    metric = GSM8KExactMatch()
    metric.update(PREDICTIONS, REFERENCES)
    copy = deepcopy(metric)
    metric.reset()
    assert metric.total == 0
    assert copy.total == 5
    assert metric.total.dtype == torch.int64


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["#### 1"], [], "1 predictions for 0 references"),
        (["#### 1", "#### 2"], ["#### 1", "none"], "expected a reference"),
    ],
)
def test_bad_input_is_an_error_and_counts_nothing(predictions, references, message):
    metric = GSM8KExactMatch()
    with pytest.raises(InputError, match=message):
        metric.update(predictions, references)
    assert metric.total == 0
    assert metric.strict_correct == 0
