"""Prompts whose answers can be graded, which is found out before anything is answered."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from lit_sft.data.prompts import make_prompts
from lit_sft.data.splits import FailedRows, Failure, read_split
from lit_sft.errors import InputError, require
from lit_sft.tasks.base import HOW_TO_GRADE, ChatTask, name_graders
from lit_sft.types import Grade, Prompt, Split, ValRows

PATIENCE_SECONDS = 5.0
"""After which a grader that fails is told of without the rest of the rows."""


class GradablePrompts(NamedTuple):
    """Prompts, and who grades their answers."""

    prompts: list[Prompt]
    sources: list[str]
    """The task of a mixture that each is from; empty where nothing is mixed."""
    grades: list[Grade]
    """Of answers that say nothing, which tell verdicts from scores."""
    graders: dict[str, str]
    """The name of the grader of each source that has a prompt."""


def make_gradable_prompts(
    task: ChatTask,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    val_rows: ValRows,
    num_shots: int,
    max_rows: int,
) -> GradablePrompts:
    """Return the prompts of a split, whose answers the task can grade.

    Args:
        task: As `lit_sft.data.prompts.make_prompts` has it, and the next four.
        split: Likewise.
        tokenizer: Likewise.
        val_rows: Likewise.
        num_shots: Likewise.
        max_rows: How many are taken; 0 takes all.

    Raises:
        InputError: If the task does not grade, or cannot grade some rows; the message names them.
    """
    graders = name_graders(task)
    ungraded = [name or type(task).__name__ for name, grader in graders.items() if grader is None]
    require(
        not ungraded,
        f"GenerationEval: {', '.join(ungraded)} does not grade answers; {HOW_TO_GRADE}, or take "
        "the callback out (--trainer.callbacks '[]' takes out all)",
    )
    require(
        split == "test" or val_rows != 0,
        "GenerationEval: data.val_rows=0 leaves no rows to evaluate on",
    )
    prompts = make_prompts(task, split, tokenizer, val_rows, num_shots)
    prompts = prompts[: max_rows or len(prompts)]
    grades = _grade_nothing(task, split, val_rows, prompts)
    sources = [task.source_of(prompt.record) for prompt in prompts]
    named = {name: str(grader) for name, grader in graders.items() if name in {*sources}}
    return GradablePrompts(prompts, sources, grades, named)


def _grade_nothing(
    task: ChatTask, split: Split, val_rows: ValRows, prompts: Sequence[Prompt]
) -> list[Grade]:
    grades: list[Grade] = []
    failed: list[tuple[Prompt, str]] = []
    began = time.monotonic()
    for prompt in prompts:
        try:
            grades.append(task.grade(prompt.record, ""))
        except InputError as error:
            failed.append((prompt, str(error)))
            if time.monotonic() - began > PATIENCE_SECONDS:
                break
    if failed:
        rows = read_split(task, split, val_rows)
        failures = [Failure(rows[prompt.row][0], reason) for prompt, reason in failed]
        raise FailedRows(failures, len(prompts))
    return grades
