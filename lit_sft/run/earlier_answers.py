"""What a model answers better or worse than what has answered the same prompts before."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from lit_sft.evaluation.comparison import Change, compare_grades
from lit_sft.evaluation.exact_match import Answer
from lit_sft.model.distributed import sum_over_ranks
from lit_sft.run.predictions import find_earlier_answers
from lit_sft.tasks.base import ChatTask
from lit_sft.types import Prompt


class Comparison(NamedTuple):
    """Of two models, on the rows that both have answered."""

    change: Change
    """Of all rows."""
    lines: list[str]
    """In words: a line a source, where there are several, and one of all rows."""

    @property
    def figures(self) -> dict[str, float]:
        """Of all rows: `won`, `lost`, `compared_rows` and McNemar's `mcnemar_p`."""
        won, lost, rows = self.change
        return {"won": won, "lost": lost, "compared_rows": rows, "mcnemar_p": self.change.p}


class EarlierAnswers:
    """The answers of a `predictions.jsonl` to prompts.

    Args:
        path: Of the file.
        prompts: Of a split, in order.
        mine: Which of them are this rank's.

    Raises:
        InputError: If the file cannot be read, or answers none of them.
    """

    def __init__(self, path: str, prompts: Sequence[Prompt], mine: slice) -> None:
        self._path, self._prompts = path, prompts[mine]
        self._answers = find_earlier_answers(Path(path).expanduser(), prompts)[mine]

    def compare(
        self,
        answers: Sequence[Answer],
        task: ChatTask,
        rows: Mapping[str, int],
        device: torch.device,
    ) -> Comparison:
        """Return what has changed; the earlier answers are graded anew.

        Args:
            answers: Of this rank's prompts, by now.
            task: That grades.
            rows: Of each source, over all ranks.
            device: Of this rank.
        """
        graded = [
            (answer.source, task.grade(prompt.record, earlier), answer.grade)
            for prompt, earlier, answer in zip(self._prompts, self._answers, answers, strict=True)
            if earlier is not None
        ]
        sources = [*rows]
        parts = [(name, [name]) for name in sources] if len(sources) > 1 else []
        lines = []
        for name, among in [*parts, ("all" if parts else "", sources)]:
            own = [(was, now) for source, was, now in graded if source in among]
            here = compare_grades([was for was, _ in own], [now for _, now in own])
            counts = sum_over_ranks(torch.tensor(here, device=device)).tolist()
            missing = sum(rows[source] for source in among) - counts[-1]
            rest = f" ({missing:,} are not in it)" if missing else ""
            label = f", {name}" if name else ""
            change = Change(*counts)
            lines.append(f"against {self._path}{label}: {change.describe()}{rest}")
        return Comparison(change, lines)  # of all rows, which come last
