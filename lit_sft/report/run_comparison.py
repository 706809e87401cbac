"""Several runs beside each other: what each came to, and whether a difference is chance."""

from collections.abc import Sequence
from typing import NamedTuple

from lit_sft.evaluation.comparison import Change, compare_grades
from lit_sft.report.answer_table import find_given, find_shared
from lit_sft.report.facts import RunFacts


class Duel(NamedTuple):
    """A run against the first one, on the rows that both have answered at last."""

    name: str
    against: str
    change: Change

    def describe(self) -> str:
        """Return it in a sentence."""
        if not self.change.rows:
            return (
                f"{self.name} and {self.against} have answered no row in common: their exact "
                "matches cannot be compared row by row."
            )
        verdict = "is no proof of a difference" if self.change.p > 0.05 else "is hardly chance"
        return f"{self.name} against {self.against}: {self.change.describe()}, which {verdict}."


def compare_runs(runs: Sequence[RunFacts]) -> list[Duel]:
    """Return each run against the first that has answered, by its last answers."""
    first = next((facts for facts in runs if facts.evaluations()), runs[0])
    others = [facts for facts in runs if facts is not first]
    return [Duel(other.name, first.name, _compare(first, other)) for other in others]


def name_tasks(facts: RunFacts) -> str:
    """Return the class of a run's task, empty where it is not on record."""
    task = (facts.config.get("data") or {}).get("task")
    return str(task.get("class_path", "")) if isinstance(task, dict) else str(task or "")


def _compare(first: RunFacts, other: RunFacts) -> Change:
    if not (first.evaluations() and other.evaluations()):
        return Change(0, 0, 0)
    steps = first.evaluations()[-1], other.evaluations()[-1]
    answers = [
        [find_given(problem, step) for problem, step in zip(problems, steps, strict=True)]
        for problems in find_shared([first, other])
    ]
    pairs = [(before.grade, after.grade) for before, after in answers if before and after]
    return compare_grades([before for before, _ in pairs], [after for _, after in pairs])
