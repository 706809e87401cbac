"""Shares of answers: how sure one may be of one, and of a difference between two. Without torch."""

import math

from lit_sft.errors import InputError

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson, 1927).

    Unlike the textbook `p +- 1.96 s`, it stays within [0, 1] and does not shrink to a point when
    all answers are right or all are wrong (Brown, Cai and DasGupta, 2001).

    Args:
        correct: Of the graded answers, how many are right.
        total: How many answers were graded.

    Returns:
        The lower and the upper bound, shares between 0 and 1.

    Raises:
        InputError: Unless `0 <= correct <= total` and `total > 0`.
    """
    if not (0 <= correct <= total and total > 0):
        raise InputError(
            f"an interval needs 0 <= correct <= total and a total above 0, got {correct} of {total}"
        )
    share, z2 = correct / total, Z_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    half = Z_95 / (1 + z2 / total) * spread
    # With none or all right a bound is the share itself, which rounding must not push it past.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def mcnemar_p(won: int, lost: int) -> float:
    """Return how likely a split as uneven as this is, where rows change either way alike.

    It is the exact, two-sided binomial test of the rows that differ (McNemar, 1947). Rows that are
    alike say nothing, and where none differs, it is 1.

    Args:
        won: Rows that are right now and were not, 0 or more.
        lost: Rows the other way round.
    """
    differing, fewer = won + lost, min(won, lost)
    ways = tail = 1
    for rows in range(fewer):
        ways = ways * (differing - rows) // (rows + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**differing) if differing else 1.0
