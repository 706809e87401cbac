"""Several runs beside each other: what each came to, and whether a difference is chance."""

from collections.abc import Sequence
from typing import NamedTuple

from lit_sft.evaluation.proportions import mcnemar_p
from lit_sft.report.answer_table import find_shared, find_verdict
from lit_sft.report.facts import RunFacts


class Duel(NamedTuple):
    """A run against the first one, on the rows that both have answered at last."""

    name: str
    against: str
    rows: int
    won: int
    """Right here, and not there."""
    lost: int

    @property
    def p(self) -> float:
        """How likely such a difference is by chance, see `mcnemar_p`."""
        return mcnemar_p(self.won, self.lost)

    def describe(self) -> str:
        """Return it in a sentence."""
        if not self.rows:
            return (
                f"{self.name} and {self.against} have answered no row in common: their exact "
                "matches cannot be compared row by row."
            )
        verdict = "is no proof of a difference" if self.p > 0.05 else "is hardly chance"
        return (
            f"{self.name} against {self.against}: won {self.won:,}, lost {self.lost:,} of "
            f"{self.rows:,} shared rows; McNemar's exact p = {self.p:.3g}, which {verdict}."
        )


def compare_runs(runs: Sequence[RunFacts]) -> list[Duel]:
    """Return each run against the first, by its last answers."""
    return [_compare(runs[0], other) for other in runs[1:]]


def name_tasks(facts: RunFacts) -> str:
    """Return the class of a run's task, empty where it is not on record."""
    task = (facts.config.get("data") or {}).get("task")
    return str(task.get("class_path", "")) if isinstance(task, dict) else str(task or "")


def _compare(first: RunFacts, other: RunFacts) -> Duel:
    won = lost = rows = 0
    if first.evaluations() and other.evaluations():
        steps = first.evaluations()[-1], other.evaluations()[-1]
        for problems in find_shared([first, other]):
            verdicts = [find_verdict(x, step) for x, step in zip(problems, steps, strict=True)]
            if all(verdicts):
                before, after = (verdict == "right" for verdict in verdicts)
                rows, won, lost = (
                    rows + 1,
                    won + (after and not before),
                    lost + (before and not after),
                )
    return Duel(other.name, first.name, rows, won, lost)
