"""Graded answers: their shares over all rows and ranks, and the interval of the exact match."""

import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_sft.errors import InputError
from lit_sft.evaluation.exact_match import Answer, ExactMatch, format_table
from lit_sft.evaluation.intervals import wilson_interval

GRADES = [True, False, None, None, True]
FINISHED = [True, True, True, False, True]
SHARES = {"exact_match": 0.4, "no_answer": 0.4, "unfinished": 0.2}


def make(grade, finished=True) -> Answer:
    return Answer(0, "q", "r", "o", grade, finished)


def count(rows: slice, **options) -> ExactMatch:
    metric = ExactMatch(**options)
    metric.update(GRADES[rows], FINISHED[rows])
    return metric


def test_no_answer_counts_as_wrong_and_separately():
    assert count(slice(None)).compute() == SHARES


def test_the_interval_is_given_on_request():
    figures = count(slice(None), with_interval=True).compute()
    low, high = figures.pop("exact_match_low"), figures.pop("exact_match_high")
    assert figures == SHARES
    assert (low, high) == wilson_interval(2, 5)


def test_shares_are_those_of_the_integers_and_not_of_float32():
    metric = ExactMatch()
    metric.update([True, False, None], [True] * 3)
    assert metric.compute()["exact_match"] == 1 / 3


def test_updates_add_up_however_they_are_cut():
    one_by_one = ExactMatch()
    for grade, is_finished in zip(GRADES, FINISHED, strict=True):
        one_by_one.update([grade], [is_finished])
    one_by_one.update([], [])
    assert one_by_one.compute() == SHARES
    assert one_by_one.total == 5


def test_forward_gives_the_batch_and_keeps_the_sum():
    metric = ExactMatch()
    assert metric([True], [True])["exact_match"] == 1.0
    assert metric([False], [True])["exact_match"] == 0.0
    assert metric.compute()["exact_match"] == 0.5


def test_two_ranks_of_unequal_size_give_the_share_of_all_rows():
    first, second = count(slice(0, 4)), count(slice(4, 5))
    first.merge_state(second)
    assert first.compute() == SHARES


def exchange_and_compute(rank: int, address: str) -> None:
    store = torch.distributed.FileStore(address, 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for parts in ([slice(0, 4), slice(4, 5)], [slice(0, 5), slice(5, 5)]):
        metric = count(parts[rank])
        assert metric.compute() == SHARES  # an error here fails the start, and so the test
        assert metric.total == len(GRADES[parts[rank]]), "a rank keeps its own counts"
    torch.distributed.destroy_process_group()


def test_two_processes_compute_the_share_of_all_rows(tmp_path):
    # Forked, they need not import torch again.
    torch.multiprocessing.start_processes(
        exchange_and_compute, args=(str(tmp_path / "store"),), nprocs=2, start_method="fork"
    )


def test_nothing_graded_is_nan_not_zero():
    metric = ExactMatch(with_interval=True)
    metric.update([], [])
    assert len(metric.compute()) == 5
    assert all(math.isnan(value) for value in metric.compute().values())


def test_reset_and_copies_start_over():
    metric = count(slice(None))
    copy = deepcopy(metric)
    metric.reset()
    assert metric.total == 0
    assert copy.total == 5
    assert metric.total.dtype == torch.int64


def test_bad_input_is_an_error_and_counts_nothing():
    metric = ExactMatch()
    with pytest.raises(InputError, match="1 grades for 0 answers"):
        metric.update([True], [])
    assert metric.total == 0
    assert metric.right == 0


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_the_published_one(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share_and_mirrors(counts):
    correct, total = counts
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
    mirrored = wilson_interval(total - correct, total)
    assert math.isclose(1 - high, mirrored[0], abs_tol=1e-12)


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_counts_have_no_interval(correct, total):
    with pytest.raises(InputError, match=f"{correct} of {total}"):
        wilson_interval(correct, total)


@pytest.mark.parametrize(
    ("grade", "word"), [(True, "right"), (False, "wrong"), (None, "no answer")]
)
def test_verdicts_in_words(grade, word):
    assert make(grade).verdict == word


def test_before_and_after_stand_side_by_side():
    table = format_table({"before": {"loss": 2.0, "match": 0.0}, "after": {"loss": 1, "match": 1}})
    assert [line.split() for line in table.splitlines()] == [
        ["before", "after"],
        ["loss", "2.0000", "1.0000"],
        ["match", "0.0000", "1.0000"],
    ]
