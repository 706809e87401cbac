"""Won, lost, and McNemar's exact p."""

from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_sft.errors import InputError
from lit_sft.evaluation.comparison import Change, compare_grades, mcnemar_p

GRADES = st.one_of(st.none(), st.booleans(), st.floats(0, 1))


def test_verdicts_and_scores_are_won_and_lost():
    before = [True, True, False, None, None, 0.5, 0.5, 1.0]
    after = [True, None, True, True, False, 0.6, 0.4, 1.0]
    change = compare_grades(before, after)
    assert change == Change(won=3, lost=2, rows=8)
    assert change.describe() == ("won 3, lost 2, alike 3 of 8 rows; McNemar's exact p = 1")


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (1, 0, 1.0),
        (5, 0, 0.0625),
        (12, 3, 0.03515625),
        # scipy.stats.binomtest(121, 180).pvalue, and so on
        (121, 59, 4.4344492637551645e-06),
        (59, 121, 4.4344492637551645e-06),
        (600, 500, 0.0028195449914364284),
        (6000, 4000, 1.7404316412268293e-89),
    ],
)
def test_p_is_that_of_the_exact_test(won, lost, p):
    assert mcnemar_p(won, lost) == pytest.approx(p, rel=1e-12, abs=0)


@given(st.integers(0, 400), st.integers(0, 400))
def test_p_is_the_probability_of_what_is_as_unlikely(won, lost):
    n = won + lost
    ways = [comb(n, k) for k in range(n + 1)]
    expected = sum(x for x in ways if x <= ways[won]) / 2**n
    assert mcnemar_p(won, lost) == pytest.approx(expected)
    assert mcnemar_p(won, lost) == mcnemar_p(lost, won)


@given(st.lists(st.tuples(GRADES, GRADES)))
def test_a_comparison_mirrors(pairs):
    before, after = [x for x, _ in pairs], [x for _, x in pairs]
    one, other = compare_grades(before, after), compare_grades(after, before)
    assert (one.won, one.lost, one.rows) == (other.lost, other.won, len(pairs))
    assert compare_grades(before, before) == (0, 0, len(pairs))


def test_other_rows_cannot_be_compared():
    with pytest.raises(InputError, match="got 1 and 2"):
        compare_grades([True], [True, False])
