"""Graders by name: how an answer is compared with the reference of its row.

Each is a pure function of two texts. Those of a verdict return True, False, or None where the text
has no answer; `f1` returns how much of the answer is right, from 0 to 1. What a model thinks before
it answers is not graded.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import regex

from lit_sft.errors import InputError, require, suggest
from lit_sft.tasks.final_answers import (
    drop_thoughts,
    equal_json,
    find_choice,
    find_json,
    find_number,
    split_words,
)
from lit_sft.types import Grade

Grader = Callable[[str, str], Grade]
"""Of a reference and of what the model said; an `InputError` if the reference has no answer."""
SEARCH_SECONDS = 1.0
"""An honest pattern takes a ten-thousandth of it."""
PROBE_LENGTH = 200
"""Characters, at which a pattern that takes exponential time never ends."""
COMPARED = "which the grader compares (choose another task.grader, or mend the row)"
MOST_REPEATS = 1000
"""Of a part of a pattern: it is written out as often when it is compiled."""
ADVICE = "; write it without a repetition in a repetition, such as (a|aa)+"

T = TypeVar("T")


def choose_grader(name: str) -> Grader:
    """Return the grader of a name.

    Args:
        name: `exact`, `number`, `choice`, `json`, `contains`, `f1`, or `regex: PATTERN`.

    Raises:
        InputError: If there is none of that name, or the pattern cannot be used.
    """
    kind, _, pattern = name.partition(":")
    if kind.strip() == "regex":
        return partial(grade_pattern, compile_pattern(pattern.strip()))
    graders: dict[str, Grader] = {
        "exact": grade_exact,
        "number": grade_number,
        "choice": grade_choice,
        "json": grade_json,
        "contains": grade_contains,
        "f1": grade_f1,
    }
    require(
        name in graders,
        f"task.grader: expected {', '.join(graders)} or 'regex: PATTERN', got {name!r}."
        f"{suggest(name, graders)}",
    )
    return graders[name]


def spell_grader(grader: str | Mapping[str, str]) -> str:
    """Return the name of a grader; `regex: PATTERN` without quotes is a mapping in YAML."""
    return grader if isinstance(grader, str) else ", ".join(f"{x}: {grader[x]}" for x in grader)


def grade_exact(reference: str, text: str) -> bool | None:
    """Return whether the texts are one, but for white space around them."""
    expected = _require(drop_thoughts(reference) or None, reference, "no text")
    answer = drop_thoughts(text)
    return answer == expected if answer else None


def grade_number(reference: str, text: str) -> bool | None:
    """Return whether the final numbers are one, see `find_number`: `1,000`, `$1000`, `1e3` are."""
    expected = _require(find_number(drop_thoughts(reference)), reference, "no number")
    answer = find_number(drop_thoughts(text))
    return None if answer is None else answer == expected


def grade_choice(reference: str, text: str) -> bool | None:
    """Return whether the letters are one, see `find_choice`: `(B)`, `B) Paris` and `b` are."""
    expected = _require(find_choice(drop_thoughts(reference)), reference, "no letter of a choice")
    answer = find_choice(drop_thoughts(text))
    return None if answer is None else answer == expected


def grade_pattern(pattern: Any, reference: str, text: str) -> bool | None:
    """Return whether a pattern finds the same in both texts.

    What counts is the first match: its first group, or, without one, the whole of it. A search of
    the text that takes more than `SEARCH_SECONDS` has found no answer, of which a warning tells.

    Args:
        pattern: As `compile_pattern` returns it.
        reference: Of the row.
        text: What the model said.

    Raises:
        InputError: If it does not match in the reference, or not in time.
    """
    shown = repr(pattern.pattern)
    try:
        found = _search(pattern, drop_thoughts(reference))
    except TimeoutError:
        raise InputError(
            f"the grader's pattern {shown} takes more than {SEARCH_SECONDS:g} s on the reference "
            f"{reference[:60]!r}{ADVICE}"
        ) from None
    expected = _require(found, reference, f"no match of {shown}")
    try:
        answer = _search(pattern, drop_thoughts(text))
    except TimeoutError:
        warnings.warn(
            f"the grader's pattern {shown} takes more than {SEARCH_SECONDS:g} s on some answers, "
            f"which count as none{ADVICE}",
            stacklevel=2,
        )
        return None
    return None if answer is None else answer == expected


def grade_json(reference: str, text: str) -> bool | None:
    """Return whether the values of JSON are equal, in whatever order their fields stand.

    The first object in the text counts, or list, as the reference is one, fenced or not.
    """
    expected, is_json = find_json(drop_thoughts(reference))
    require(is_json, f"the answer of the row is not JSON, {COMPARED}: {reference[:80]!r}")
    value, is_json = find_json(drop_thoughts(text), like=expected)
    return equal_json(expected, value) if is_json else None


def grade_contains(reference: str, text: str) -> bool | None:
    """Return whether the text has the reference in it, as whole words in any case."""
    expected = _require(_flatten(reference) or None, reference, "no text")
    answer = _flatten(text)
    before = r"(?<!\w)" if expected[0].isalnum() else ""
    after = r"(?!\w)" if expected[-1].isalnum() else ""
    return bool(re.search(before + re.escape(expected) + after, answer)) if answer else None


def grade_f1(reference: str, text: str) -> float:
    """Return the harmonic mean of precision and recall of the words that `split_words` gives."""
    expected = _require(split_words(drop_thoughts(reference)) or None, reference, "no word")
    answer = split_words(drop_thoughts(text))
    shared = sum((Counter(expected) & Counter(answer)).values())
    return 2 * shared / (len(expected) + len(answer))


def compile_pattern(pattern: str) -> Any:
    """Return a compiled pattern whose search can be timed.

    Raises:
        InputError: If it is none, or takes too long on one repeated character or word of its own.
    """
    require(bool(pattern), "task.grader: expected 'regex: PATTERN', and there is no pattern")
    often = max((int(count) for count in re.findall(r"\{([0-9]{1,9})", pattern)), default=0)
    require(
        often <= MOST_REPEATS,
        f"task.grader: the pattern {pattern!r} repeats something {often:,} times at the least; "
        f"{MOST_REPEATS:,} may be",
    )
    try:
        compiled = regex.compile(pattern)
    except (regex.error, ValueError, OverflowError, RecursionError, IndexError) as error:
        raise InputError(f"task.grader: {pattern!r} is no regular expression: {error}") from error
    words = re.findall("[A-Za-z]{2,}", pattern)
    for piece in dict.fromkeys([*filter(str.isalnum, pattern), *words, *"a0 ", "\n"]):
        try:
            _search(compiled, piece * (PROBE_LENGTH // len(piece)) + "\0")
        except TimeoutError:
            raise InputError(
                f"task.grader: the pattern {pattern!r} takes more than {SEARCH_SECONDS:g} s on "
                f"{PROBE_LENGTH} characters, {piece!r} again and again{ADVICE}"
            ) from None
    return compiled


def _search(pattern: Any, text: str) -> str | None:
    """Return what a pattern finds first; raise `TimeoutError` if that takes too long."""
    match = pattern.search(text, timeout=SEARCH_SECONDS)
    found = match and (match.group(1) if pattern.groups else match.group())
    return None if found is None else str(found).strip()


def _require(found: T | None, reference: str, lack: str) -> T:
    if found is None:
        raise InputError(f"the answer of the row has {lack}, {COMPARED}: {reference[:80]!r}")
    return found


def _flatten(text: str) -> str:
    return " ".join(drop_thoughts(text).casefold().split())
