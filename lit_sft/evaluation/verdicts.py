"""Grades in words, and back. Without torch."""

import math

from lit_sft.types import Grade

SCORE = "f1 "
"""Before a grade that is a figure."""


def name_verdict(grade: Grade) -> str:
    """Return a grade in words: `right`, `wrong`, `no answer` for None, and such as `f1 0.667`."""
    if isinstance(grade, float):
        return f"{SCORE}{grade:.3f}"
    return "no answer" if grade is None else "right" if grade else "wrong"


def parse_verdict(verdict: str) -> Grade:
    """Return the grade that a verdict tells; what is none of them is wrong."""
    if verdict.startswith(SCORE):
        try:
            score = float(verdict.removeprefix(SCORE))
        except ValueError:
            return False
        return score if math.isfinite(score) and 0 <= score <= 1 else False
    return None if verdict == "no answer" else verdict == "right"
