"""`logs/answers.jsonl`: every answer of every evaluation, a line each, within bounds."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_sft.files import replace_file
from lit_sft.run.records import append_rows, read_lines

MOST_CHARACTERS = 4_000
"""Kept of a text; `cut` then has the length of the longest."""
MOST_BYTES = 32 * 2**20
"""Of the file. Behind that, answers are kept without their texts: the verdicts say enough."""
ASKED = ("question", "reference")
"""Texts that do not change from one evaluation to the next: the first one has them."""


def keep_answers(path: Path, step: int, answers: Sequence[Mapping[str, object]]) -> None:
    """Add the answers of an evaluation, in place of what a run that was resumed had behind it.

    Args:
        path: Of the file.
        step: After how many optimizer steps they were given.
        answers: Of all rows: `row`, `question`, `reference`, `output`, `verdict` and `finished`;
            `tokens`, pieces of the output with their probabilities, where these are known.
    """
    lines = [x for x in read_lines(path) if x] if path.is_file() else []
    earlier = [(line, parsed) for line in lines if (parsed := parse_answer(line))]
    kept = [(line, parsed) for line, parsed in earlier if parsed["step"] < step]
    before = "".join(f"{line}\n" for line, _ in kept)
    asked = {parsed["row"] for _, parsed in kept if "question" in parsed}
    room = MOST_BYTES - len(before)
    text = "".join(_write_lines(step, answers, asked, room))
    if path.is_file() and path.stat().st_size == len(before.encode()):
        append_rows(path, text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as staged:
        staged.write_text(before + text, encoding="utf-8")


def parse_answer(line: str | None) -> dict[str, Any] | None:
    """Return what a line holds, or None where it is no answer."""
    try:
        values = json.loads(line or "")
    except (ValueError, RecursionError):
        return None
    is_one = (
        isinstance(values, dict)
        and type(values.get("step")) is int
        and type(values.get("row")) is int
        and isinstance(values.get("verdict"), str)
        and all(isinstance(values.get(name, ""), str) for name in (*ASKED, "output"))
    )
    return values if is_one else None


def _write_lines(
    step: int, answers: Sequence[Mapping[str, Any]], asked: set[int], room: int
) -> Iterable[str]:
    for answer in answers:
        values = {"step": step, **answer}
        if answer["row"] in asked:
            values = {name: value for name, value in values.items() if name not in ASKED}
        texts = [name for name in (*ASKED, "output") if name in values]
        longest = max(len(values[name]) for name in texts)
        if longest > MOST_CHARACTERS:
            values |= {name: values[name][:MOST_CHARACTERS] for name in texts} | {"cut": longest}
            values.pop("tokens", None)
        line = f"{json.dumps(values)}\n"
        if len(line) > room:
            line = (
                f"{json.dumps({k: v for k, v in values.items() if k not in (*texts, 'tokens')})}\n"
            )
        room -= len(line)
        yield line
