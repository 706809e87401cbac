"""Find and compare the final answers of GSM8K. Pure: text in, text or bool out.

The rules are those of the `gsm8k` task of EleutherAI's lm-evaluation-harness, so that a number
reported here can stand beside a published one.
"""

import math
import re

from lit_sft.errors import InputError, require

# `[0-9]`, never `\d`: that would also match the digits of other scripts.
STRICT_ANSWER = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE_ANSWER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
ANSWER_MARK = "#### "
DIGIT = re.compile(r"[0-9]")
NUMBER = re.compile(r"-?\.?[0-9][0-9.]*")
Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


def extract_strict(text: str) -> str | None:
    """Return the number after the first `#### ` that a number follows, normalised.

    Returns:
        The answer as `normalize_answer` writes it, or None if there is none. A match without a
        digit (`#### ...`) is no answer.
    """
    return _answer_of(STRICT_ANSWER.search(text))


def extract_flexible(text: str) -> str | None:
    """Return the last thing in the text that looks like a number, normalised.

    The last match decides even where it is not a number, as in `it is 18 ...`: the harness scores
    that wrong, so here it is no answer.

    Returns:
        The answer as `normalize_answer` writes it, or None if there is none.
    """
    last = None
    for match in FLEXIBLE_ANSWER.finditer(text):
        last = match
    return _answer_of(last)


def extract_reference(reference: str) -> str:
    """Return the normalised answer of a reference solution: what follows its last `#### `.

    A reference without that mark is taken to be the bare answer.

    Raises:
        InputError: If what is left is not a number, which no answer could then equal.
    """
    answer = normalize_answer(reference.rpartition(ANSWER_MARK)[2].strip())
    if not NUMBER.fullmatch(answer):
        raise InputError(
            f"expected a reference that ends in `#### ` and a number, got {reference!r:.80}"
        )
    return answer


def normalize_answer(answer: str) -> str:
    """Drop commas, dollar signs and one trailing full stop: `$1,000.` becomes `1000`."""
    return answer.replace(",", "").replace("$", "").removesuffix(".")


def grade_final_answer(reference: str, text: str) -> bool | None:
    """Return whether the strict answer of `text` is that of the reference solution.

    Normalised answers are compared as strings, as the harness does, not as numbers: `18.0` and
    `018` are not `18`.

    Args:
        reference: A solution that ends in `#### number`, or the number alone.
        text: What the model said.

    Returns:
        None if `text` has no strict answer, which counts as wrong.

    Raises:
        InputError: If the reference has no answer.
    """
    expected, answer = extract_reference(reference), extract_strict(text)
    return None if answer is None else answer == expected


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
    require(
        0 <= correct <= total and total > 0,
        f"an interval needs 0 <= correct <= total and a total above 0, got {correct} of {total}",
    )
    share, z2 = correct / total, Z_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    half = Z_95 / (1 + z2 / total) * spread
    # With none or all right a bound is the share itself, which rounding must not push it past.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _answer_of(match: re.Match[str] | None) -> str | None:
    if match is None:
        return None
    answer = normalize_answer(match.group().removeprefix(ANSWER_MARK))
    return answer if DIGIT.search(answer) else None
