"""Graded answers of all ranks: their figures, by source too, and the table of them."""

from collections.abc import Mapping, Sequence

import torch

from lit_sft.evaluation.exact_match import FIGURES, Answer, ExactMatch
from lit_sft.types import Grade

GRADED = FIGURES[:2]
"""What graders give; the other figures are told beside them."""
COLUMNS = ("source", "grader", "rows", "figure", "value", "95 %", "no answer", "unfinished")
MATCH_ROWS = 64
"""Answers among which a grader that suits them finds one that is right."""


def list_figures(sources: Sequence[str], grades: Sequence[Grade]) -> list[str]:
    """Return the names of what `measure` will return.

    Args:
        sources: Of each row, empty where there is no mixture.
        grades: Likewise, of whatever answer.
    """
    names = []
    for suffix in dict.fromkeys(["", *(f"/{source}" for source in sources if source)]):
        own = [y for x, y in zip(sources, grades, strict=True) if suffix in ("", f"/{x}")]
        is_score = {isinstance(grade, float) for grade in own}
        given = [name for name in GRADED if (name == "f1") in is_score]
        names += [f"{name}{suffix}" for name in (*given, *FIGURES[2:])]
    return names


def measure(
    answers: Sequence[Answer],
    device: torch.device,
    sources: Sequence[str] = (),
    with_interval: bool = False,
) -> dict[str, float]:
    """Return the figures over the answers of all ranks, as `ExactMatch` computes them.

    Args:
        answers: Of this rank.
        device: Where the ranks exchange their counts.
        sources: Of a mixture, the same on all ranks; each has figures of its own, such as
            `exact_match/chats`.
        with_interval: As `ExactMatch` has it.
    """
    figures = _compute(answers, device, with_interval)
    for source in sources:
        own = [answer for answer in answers if answer.source == source]
        part = _compute(own, device, with_interval)
        figures |= {f"{name}/{source}": value for name, value in part.items()}
    return figures


def format_scores(
    figures: Mapping[str, float], graders: Mapping[str, str], rows: Mapping[str, int]
) -> str:
    """Return a table by source and grader as plain text: a line a figure, with its interval.

    Args:
        figures: As `measure` returns them, with intervals.
        graders: Their names by source; a task that mixes none has one source, without a name.
        rows: Likewise, how many were answered on all ranks.
    """
    lines: list[Sequence[str]] = [COLUMNS]
    for name in GRADED if len(graders) > 1 else ():
        of_it = [count for source, count in rows.items() if f"{name}/{source}" in figures]
        lines += _format_line(figures, name, "", ("all", "", f"{sum(of_it):,}"))
    parts: list[Sequence[str]] = []
    for source, grader in graders.items():
        opening = (source or "all", grader, f"{rows[source]:,}")
        for name in GRADED:
            parts += _format_line(figures, name, f"/{source}" if source else "", opening)
    table = [lines[0], *parts, *lines[1:]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    )


def describe_no_match(
    figures: Mapping[str, float], grader: str, rows: int, answer: Answer | None, source: str = ""
) -> str:
    """Return a line that a grader has found nothing right in many answers; empty if it has.

    Args:
        figures: As `measure` returns them.
        grader: Its name.
        rows: How many were answered on all ranks; fewer than `MATCH_ROWS` tell nothing.
        answer: One of them, to show.
        source: Of the answers, in a mixture.
    """
    suffix = f"/{source}" if source else ""
    values = [figures[name + suffix] for name in GRADED if name + suffix in figures]
    if rows < MATCH_ROWS or any(values) or not values:
        return ""
    is_empty = figures[f"no_answer{suffix}"] == 1
    found = "finds no answer in any" if is_empty else "finds none right"
    shown = f": one is {answer.output!r:.120} for {answer.reference!r:.120}" if answer else ""
    where = f" of {source}" if source else ""
    return (
        f"the grader {grader!r} {found} of {rows:,} answers{where}{shown}; if that is right, it is "
        "not the grader for these rows"
    )


def _format_line(
    figures: Mapping[str, float], name: str, suffix: str, opening: Sequence[str]
) -> list[Sequence[str]]:
    if name + suffix not in figures:
        return []
    low, high = (figures[f"{name}_{end}{suffix}"] for end in ("low", "high"))
    beside = [f"{figures[other + suffix]:.4f}" for other in FIGURES[2:]]
    value = f"{figures[name + suffix]:.4f}"
    return [(*opening, name, value, f"{low:.4f} to {high:.4f}", *beside)]


def _compute(
    answers: Sequence[Answer], device: torch.device, with_interval: bool
) -> dict[str, float]:
    metric = ExactMatch(with_interval).to(device)
    metric.update([answer.grade for answer in answers], [answer.finished for answer in answers])
    figures: dict[str, float] = metric.compute()
    return figures
