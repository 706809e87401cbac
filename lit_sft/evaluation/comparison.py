"""Two gradings of the same rows: what was won, what was lost, and whether chance explains it."""

from collections.abc import Sequence
from typing import NamedTuple

from lit_sft.errors import require
from lit_sft.types import Grade


class Change(NamedTuple):
    """What one model answers better or worse than another."""

    won: int
    """Rows that are right now and were not, or have a higher score."""
    lost: int
    """The other way round."""
    rows: int
    """That were compared."""

    @property
    def p(self) -> float:
        """McNemar's exact p, see `mcnemar_p`."""
        return mcnemar_p(self.won, self.lost)

    def describe(self) -> str:
        """Return it in a line."""
        return (
            f"won {self.won:,}, lost {self.lost:,}, alike {self.rows - self.won - self.lost:,} of "
            f"{self.rows:,} rows; McNemar's exact p = {self.p:.3g}"
        )


def compare_grades(before: Sequence[Grade], after: Sequence[Grade]) -> Change:
    """Return what has changed from one grading to another of the same rows, in order.

    Raises:
        InputError: If the lengths differ.
    """
    require(
        len(before) == len(after),
        f"expected as many grades of before as now, got {len(before)} and {len(after)}",
    )
    changes = [weigh(new) - weigh(old) for old, new in zip(before, after, strict=True)]
    return Change(sum(x > 0 for x in changes), sum(x < 0 for x in changes), len(changes))


def weigh(grade: Grade) -> float:
    """Return how much of an answer is right, from 0 to 1; none is not."""
    return grade if isinstance(grade, float) else float(bool(grade))


def mcnemar_p(won: int, lost: int) -> float:
    """Return how likely a split as uneven as this is, where rows change either way alike.

    It is the exact, two-sided binomial test of the rows that differ (McNemar, 1947); for scores,
    the sign test. Rows that are alike say nothing, and where none differs, it is 1.

    Args:
        won: Rows of the one kind, 0 or more.
        lost: Rows of the other.
    """
    differing, fewer = won + lost, min(won, lost)
    ways = tail = 1
    for rows in range(fewer):
        ways = ways * (differing - rows) // (rows + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**differing) if differing else 1.0
