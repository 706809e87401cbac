"""What is known of a run, as plain values."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lit_sft.evaluation.intervals import mean_interval, wilson_interval
from lit_sft.evaluation.verdicts import parse_verdict
from lit_sft.types import Grade

NONE = "-"
"""In the place of a value that there is not."""
GRADED = {"val/exact_match": "exact match", "val/f1": "F1"}
"""What graders give, by the name of its column, in words."""
Series = list[tuple[int, float]]
"""A figure by its optimizer step, ascending; it may be NaN."""


@dataclass(frozen=True)
class Given:
    """An answer of one evaluation to one row."""

    step: int
    verdict: str
    finished: bool
    output: str | None
    """None where a run keeps verdicts alone, for the size of the file."""
    cut: int = 0
    """The characters of the longest of its texts, where they were cut."""
    tokens: tuple[tuple[str, float], ...] = ()
    """The pieces of the output with their probabilities, where these were recorded."""

    @property
    def grade(self) -> Grade:
        """What the verdict tells."""
        return parse_verdict(self.verdict)


@dataclass(frozen=True)
class Problem:
    """A row that was evaluated, and its answers by ascending step."""

    row: int
    question: str
    reference: str
    answers: list[Given]


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run. Whatever a run did not leave is empty."""

    name: str
    folder: Path
    figures: dict[str, Series] = field(default_factory=dict)
    """By the names of the columns of `metrics.csv`, such as `train/loss`."""
    problems: list[Problem] = field(default_factory=list)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    """What `adapter/lit_sft.json` says of the weights in there."""
    measured: list[dict[str, Any]] = field(default_factory=list)
    """What `lit-sft test` came to, a record for the weights that were tested."""
    is_going_on: bool = False
    is_partial: bool = False
    """Whether some answers alone were kept, as by runs of former versions."""
    changed: datetime | None = None
    """When its figures were last written."""
    remarks: list[str] = field(default_factory=list)
    """What could not be read."""

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return max((series[-1][0] for series in self.figures.values() if series), default=0)

    @property
    def total_steps(self) -> int:
        """Optimizer steps that the run was to take; 0 where that is not known."""
        last = self.begins[-1] if self.begins else {}
        limit = (self.config.get("trainer") or {}).get("max_steps")
        return as_count(last.get("total_steps")) or as_count(limit)

    @property
    def begins(self) -> list[dict[str, Any]]:
        """The sessions' beginnings."""
        return [record for record in self.sessions if record["event"] == "begin"]

    @property
    def has_finished(self) -> bool:
        """Whether a run came to its end, rather than being stopped, killed or still going on."""
        if self.sessions:
            return self.sessions[-1].get("how") == "finished"
        return bool(self.adapter) and not self.is_going_on

    def seconds(self) -> float | None:
        """Return the wall time of all sessions, or None where it is not on record.

        A process that was killed has its end where figures were last written.
        """
        total, began = 0.0, None
        for record in [*self.sessions, {"event": "begin"}]:
            time = read_time(record.get("time"))
            if began and record["event"] == "begin":
                step_by = min(filter(None, [self.changed, time]), default=began)
                total += max(0.0, (step_by - began).total_seconds())
            elif began and time:
                total += (time - began).total_seconds()
            began = time if record["event"] == "begin" else None
        return total if any(read_time(x.get("time")) for x in self.begins) else None

    def evaluations(self) -> list[int]:
        """Return the steps after which rows were answered, ascending."""
        return sorted({answer.step for problem in self.problems for answer in problem.answers})

    def interval(self, name: str, step: int) -> tuple[float, float] | None:
        """Return the 95 % interval of a graded figure, if all answers of the step are on record.

        Args:
            name: One of `GRADED`.
            step: After which it was measured.
        """
        if self.is_partial:
            return None
        given = [a.grade for problem in self.problems for a in problem.answers if a.step == step]
        scores = [grade for grade in given if isinstance(grade, float)]
        if name == "val/f1":
            squares = sum(score * score for score in scores)
            return mean_interval(sum(scores), squares, len(scores)) if scores else None
        judged = len(given) - len(scores)
        return wilson_interval(sum(grade is True for grade in given), judged) if judged else None


def finite(series: Iterable[tuple[int, float]]) -> Series:
    """Return the part of a series that is a number."""
    return [(step, value) for step, value in series if math.isfinite(value)]


def as_count(value: object) -> int:
    """Return a count, 0 for anything that is none."""
    return value if isinstance(value, int) and value > 0 else 0


def read_time(text: object) -> datetime | None:
    """Return a time with its zone, None for what is none."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
