"""What graded answers add up to."""

import pytest

from lit_sft.evaluation.tally import Answer, Tally, count_answers, format_table


def make(grade, finished=True) -> Answer:
    return Answer(0, "q", "r", "o", grade, finished)


def test_no_answer_counts_as_wrong_and_separately():
    tally = count_answers([make(True), make(False), make(None), make(None, finished=False)])
    assert tally == Tally(total=4, right=1, no_answer=2, unfinished=1)
    assert tally.as_shares() == {"exact_match": 0.25, "no_answer": 0.5, "unfinished": 0.25}
    low, high = tally.interval()
    assert low < 0.25 < high


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
