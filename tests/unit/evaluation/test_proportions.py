"""McNemar's exact p against sums of the binomial distribution; Wilson's interval is tested beside
the metric that has it."""

from math import comb

import pytest

from lit_sft.evaluation.proportions import mcnemar_p


@pytest.mark.parametrize(("won", "lost"), [(8, 1), (1, 8), (3, 12), (0, 6), (700, 640)])
def test_it_is_the_two_sided_binomial_test(won, lost):
    differing = won + lost
    tail = sum(comb(differing, rows) for rows in range(min(won, lost) + 1))
    assert mcnemar_p(won, lost) == pytest.approx(min(1.0, 2 * tail / 2**differing), rel=1e-12)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (5, 5), (6, 5)])
def test_what_chance_gives_is_no_difference(won, lost):
    assert mcnemar_p(won, lost) == 1.0
