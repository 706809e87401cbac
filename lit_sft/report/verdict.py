"""What came of a run in a sentence with numbers, and what one should worry about."""

import math
from collections.abc import Iterator
from statistics import median

from lit_sft.data.repetition import tell_repetition
from lit_sft.report.facts import GRADED, RunFacts, Series, finite
from lit_sft.run.time_left import format_seconds

RISE = 0.02
"""By which part of its least value a held-out loss has to have risen to be worth a word."""
STILL_HIGH = 0.05
"""The part of the peak learning rate from which on a run has not come to rest."""
FEW_STEPS = 50
"""A schedule of fewer steps has a high rate in its last one, and ends at zero behind it."""


def tell_verdict(facts: RunFacts) -> str:
    """Return what came of a run: what it learnt, when it was best, and what that took."""
    total = f" of {facts.total_steps:,}" if facts.total_steps else ""
    learnt = [*(_tell_graded(facts, name) for name in GRADED), _tell_loss(facts)]
    cost = [f"{facts.step:,}{total} steps"]
    if rate := measure_rate(facts):
        cost.append(f"{rate:,.0f} tokens/s")
    if (seconds := facts.seconds()) is not None:
        cost.append(f"{format_seconds(seconds)} of wall time")
    if peak := finite(facts.figures.get("train/peak_memory_gib", [])):
        cost.append(f"{max(value for _, value in peak):.1f} GiB of memory at the peak")
    return " ".join(f"{text}." for text in [*filter(None, learnt), ", ".join(cost)])


def tell_state(facts: RunFacts) -> str:
    """Return what to know of a run that has not come to its end; empty where it has."""
    if facts.has_finished:
        return ""
    if facts.is_going_on:
        return "This run is still going on: this is what there is so far."
    how = facts.sessions[-1].get("how") if facts.sessions else None
    reason = f"was stopped: {how}" if how else "was killed, or never came to its end"
    return f"This run {reason}. This is what it had left by then."


def list_worries(facts: RunFacts) -> list[str]:
    """Return what may be wrong with a run, a sentence each."""
    return [
        *_worry_about_loss(facts),
        *_worry_about_answers(facts),
        *_worry_about_steps(facts),
        *_worry_about_rows(facts),
    ]


def measure_rate(facts: RunFacts) -> float | None:
    """Return the median of the tokens a second; the mean would be that of the first steps, too."""
    rates = [value for _, value in finite(facts.figures.get("train/tokens_per_second", []))]
    return median(rates) if rates else None


def _tell_graded(facts: RunFacts, name: str) -> str:
    figures = finite(facts.figures.get(name, []))
    if not figures:
        return ""
    (first, before), (last, after) = figures[0], figures[-1]
    best_step, best = max(figures, key=lambda x: x[1])
    interval = facts.interval(name, last)
    within = f", 95 % interval {interval[0]:.1%} to {interval[1]:.1%}" if interval else ""
    rows = f" on {len(facts.problems):,} held-out rows" if within else ""
    label = f"{GRADED[name][0].upper()}{GRADED[name][1:]}"
    if first == last:
        return f"{label} {after:.1%}{rows}, measured once{within}"
    text = f"{label} {before:.1%} → {after:.1%}{rows}{within}"
    return f"{text}; best after step {best_step:,}" + (f", {best:.1%}" if best > after else "")


def _tell_loss(facts: RunFacts) -> str:
    for name, label in (("val/loss", "Loss on held-out rows"), ("train/loss", "Training loss")):
        losses = finite(facts.figures.get(name, []))
        if losses:
            return f"{label} {losses[0][1]:.3g} → {losses[-1][1]:.3g}"
    return "No loss is on record"


def _worry_about_loss(facts: RunFacts) -> Iterator[str]:
    for name, series in facts.figures.items():
        known = finite(series)
        if name.startswith("val/loss") and len(known) > 1:
            step, least = min(known, key=lambda x: x[1])
            last = known[-1][1]
            if last > least * (1 + RISE):
                yield (
                    f"The loss on held-out rows ({name}) rose from {least:.3g} after step {step:,} "
                    f"to {last:.3g}: later steps fit the training rows alone."
                )
        if lost := len(series) - len(known):
            yield f"{name} is not a number in {lost:,} of {len(series):,} rows."


def _worry_about_answers(facts: RunFacts) -> Iterator[str]:
    unfinished = finite(facts.figures.get("val/unfinished", []))
    if unfinished and unfinished[-1][1] > 0:
        yield (
            f"{unfinished[-1][1]:.1%} of the last answers did not end by themselves: "
            "model.max_new_tokens is too small for them, or ending is not learnt."
        )
    for name, label in GRADED.items():
        figures = finite(facts.figures.get(name, []))
        step, best = max(figures, key=lambda x: x[1], default=(0, 0.0))
        interval = facts.interval(name, step)
        if figures and interval and figures[-1][1] < min(best, interval[0]):
            yield f"The {label} fell from {best:.1%} after step {step:,} to {figures[-1][1]:.1%}."


def _worry_about_steps(facts: RunFacts) -> Iterator[str]:
    if skipped := len(facts.figures.get("train/skipped_steps", [])):
        steps = f"{skipped:,} steps were" if skipped > 1 else "A step was"
        yield f"{steps} skipped, as the loss or a gradient was not finite."
    rates: Series = finite(facts.figures.get("train/learning_rate", []))
    peak = max((value for _, value in rates), default=0.0)
    is_early = facts.step < facts.total_steps or not facts.total_steps
    is_high = rates and rates[-1][1] > STILL_HIGH * peak and not facts.is_going_on
    if is_high and (is_early or facts.total_steps >= FEW_STEPS):
        reason = "the run ended before its schedule did" if is_early else "so model.schedule has it"
        yield (
            f"The learning rate ended at {rates[-1][1]:.2e}, {rates[-1][1] / peak:.0%} of its "
            f"peak: {reason}."
        )


def _worry_about_rows(facts: RunFacts) -> Iterator[str]:
    splits = facts.begins[-1].get("data") or {} if facts.begins else {}
    for split, ledger in splits.items() if isinstance(splits, dict) else ():
        if dropped := _count(ledger, "dropped"):
            yield f"{dropped:,} of {_count(ledger, 'rows'):,} rows of {split} were dropped."
        if truncated := _count(ledger, "truncated"):
            yield f"{truncated:,} of {_count(ledger, 'rows'):,} rows of {split} were cut."
        repeats = ledger.get("repeats") if isinstance(ledger, dict) else None
        leaked = {other: _count(repeats, other) for other in ("test", "val")}
        if split == "train":
            leaked["test"] = max([leaked["test"], *_list_leaks(facts)])
        for other, rows in leaked.items():
            if rows:
                yield f"The questions of {rows:,} rows of {split} stand in {other}, too."
        repetition = ""
        if split == "train":
            repetition = tell_repetition(_count(ledger, "kept"), _count_epochs(facts))
        if repetition:
            yield f"{repetition}."


def _list_leaks(facts: RunFacts) -> list[int]:
    """Return how many rows of train `lit-sft test` has found in test, each time."""
    return [_count(record.get("data"), "train_rows_in_test") for record in facts.measured]


def _count_epochs(facts: RunFacts) -> float:
    each = facts.begins[-1].get("steps_per_epoch") if facts.begins else None
    is_known = isinstance(each, (int, float)) and math.isfinite(each) and each > 0
    return (facts.total_steps or facts.step) / each if is_known and each else 0.0


def _count(record: object, name: str) -> int:
    value = record.get(name) if isinstance(record, dict) else None
    return value if isinstance(value, int) else 0
