"""GSM8K, grade-school word problems with worked solutions: rows, turns and grading.

Published by Cobbe et al. (2021). The rules of grading are those of the `gsm8k` task of EleutherAI's
lm-evaluation-harness, so that a number reported here can stand beside a published one.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from lit_sft.errors import InputError
from lit_sft.paths import is_local
from lit_sft.tasks.arrow_rows import load_hub
from lit_sft.tasks.base import ChatTask, Row, read_text
from lit_sft.tasks.json_rows import JsonLines
from lit_sft.types import Message, Split

# `[0-9]`, never `\d`: that would also match the digits of other scripts.
STRICT_ANSWER = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE_ANSWER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
ANSWER_MARK = "#### "
DIGIT = re.compile(r"[0-9]")
NUMBER = re.compile(r"-?\.?[0-9][0-9.]*")


class GSM8K(ChatTask):
    """The question as the user's turn, the worked solution as the assistant's.

    Args:
        path: The Hub id, or a folder with `train.jsonl` and `test.jsonl`.
    """

    def __init__(self, path: str = "openai/gsm8k") -> None:
        self.path = path

    def rows(self, split: Split) -> Sequence[Row] | None:
        """Return `train` (7,473 rows) or `test` (1,319 rows); GSM8K has no validation split."""
        if split == "val":
            return None
        if is_local(self.path):
            return JsonLines(Path(self.path).expanduser() / f"{split}.jsonl")
        rows: Sequence[Row] = load_hub(self.path, "main")[split]
        return rows

    def messages(self, row: Row) -> list[Message]:
        """Return a user turn and an assistant turn, without a system turn."""
        return [
            {"role": "user", "content": read_text(row, "question")},
            {"role": "assistant", "content": read_text(row, "answer")},
        ]

    def grade(self, row: Row, text: str) -> bool | None:
        """Return whether the first `#### number` of `text` is the row's; None if there is none."""
        return grade_final_answer(read_text(row, "answer"), text)


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


def _answer_of(match: re.Match[str] | None) -> str | None:
    if match is None:
        return None
    answer = normalize_answer(match.group().removeprefix(ANSWER_MARK))
    return answer if DIGIT.search(answer) else None
