"""95 % intervals: how sure one may be of a share, and of a mean. Without torch."""

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


def mean_interval(score_sum: float, square_sum: float, total: int) -> tuple[float, float]:
    """Return a 95 % interval of the mean of scores from 0 to 1: normal, with four scores added.

    Two are 0 and two are 1, as Agresti and Coull (1998) add them to a proportion: equal scores do
    not shrink it to a point, and few do not make it too narrow.

    Args:
        score_sum: Of all scores.
        square_sum: Of their squares.
        total: How many they are, one at least.

    Returns:
        The lower and the upper bound, between 0 and 1, with the mean between them.
    """
    count, mean = total + 4, score_sum / total
    centre = (score_sum + 2) / count
    variance = max(0.0, (square_sum + 2) / count - centre**2) * count / (count - 1)
    half = Z_95 * math.sqrt(variance / count)
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))
