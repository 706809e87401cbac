"""What `predictions.jsonl` says: how a line reads, and the answers of an earlier file."""

import json
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_sft.errors import InputError, require
from lit_sft.run.records import read_lines
from lit_sft.types import Message, Prompt


def split_prompt(prompt: Prompt) -> tuple[list[Message], str | None]:
    """Return what was asked, and the reference where the assistant has the last turn."""
    *asked, last = prompt.messages
    if last["role"] == "assistant":
        return asked, last["content"]
    return list(prompt.messages), None


def find_earlier_answers(path: Path, prompts: Sequence[Prompt]) -> list[str | None]:
    """Return what a file of predictions answers to prompts, None where it does not.

    Prompts are found by what they say, wherever they stand in the file.

    Args:
        path: Of the file.
        prompts: In order.

    Raises:
        InputError: If the file cannot be read, or answers none of them.
    """
    known: dict[str, deque[str]] = defaultdict(deque)
    for line in _read_predictions(path):
        known[_spell(line.get("prompt"))].append(line["answer"])
    found: list[str | None] = []
    for prompt in prompts:
        answers = known.get(_spell(split_prompt(prompt)[0]))
        found.append(answers.popleft() if answers else None)
    require(
        any(answer is not None for answer in found),
        f"data.compare_with: {path} answers none of the {len(prompts):,} prompts of this split; "
        "name the predictions.jsonl of `lit-sft predict` on the same one",
    )
    return found


def _read_predictions(path: Path) -> list[Mapping[str, Any]]:
    try:
        lines = read_lines(path)
    except OSError as error:
        raise InputError(f"data.compare_with: cannot read {path}: {error.strerror}") from error
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if not isinstance(row, dict) or not isinstance(row.get("answer"), str):
            raise InputError(
                f"data.compare_with: {path}, line {number}: expected a line of predictions.jsonl, "
                f"with prompt and answer, found {(line or '')!r:.60}"
            )
        rows.append(row)
    return rows


def _parse(line: str | None) -> Any:
    try:
        return json.loads(line or "")
    except (ValueError, RecursionError):
        return None


def _spell(messages: Any) -> str:
    return json.dumps(messages, sort_keys=True)
