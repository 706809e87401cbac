"""What a run prints while it trains and is evaluated: how far it is, and how long it takes."""

import math
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from lit_sft.model.module import SFTModule
from lit_sft.run.time_left import Pace, count_evaluations, format_seconds

SHOWN = {
    "train/loss": ("loss", ".4f"),
    "train/learning_rate": ("lr", ".2e"),
    "train/tokens_per_second": ("tokens/s", ",.0f"),
    "val/loss": ("val_loss", ".4f"),
    "val/exact_match": ("exact_match", ".3f"),
    "val/f1": ("f1", ".3f"),
}
LINES = 10
"""How many lines a training run prints where there is no terminal."""
EVALUATION = "val/eval_seconds"
"""Measured with every evaluation."""
BAR_WIDTH = 20
"""Characters, so that figures have room."""
QUIET_SECONDS = 10.0
"""Answers that take less are not worth a line where there is no terminal."""


class Latest:
    """The figures that are shown, and after which step each was measured."""

    def __init__(self) -> None:
        self._seen: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}
        self._unsaid: set[str] = set()

    def note(self, metrics: Mapping[str, Tensor], step: int) -> list[str]:
        """Return the names of those that were measured since the last time.

        Args:
            metrics: What is known now; a figure that is measured again is another tensor.
            step: Optimizer steps taken.
        """
        names = (*SHOWN, EVALUATION)
        fresh = [x for x in names if x in metrics and metrics[x] is not self._seen.get(x)]
        for name in fresh:
            self._seen[name], self._steps[name] = metrics[name], step
        self._unsaid.update(fresh)
        return fresh

    def value(self, name: str) -> float:
        """Return a figure that was noted."""
        return self._seen[name].item()

    def describe(self, step: int, mark: str = " (step {:,})") -> dict[str, str]:
        """Return the figures, short and ready to print.

        Args:
            step: Now.
            mark: What is behind a figure of an earlier step, and says of which.
        """
        shown = {}
        for name, (label, spec) in SHOWN.items():
            if name in self._seen:
                measured = self._steps[name]
                place = mark.format(measured) if measured < step else ""
                shown[label] = format(self.value(name), spec) + place
        return shown

    def describe_new(self, step: int) -> dict[str, str]:
        """Return those that were measured since this was asked before."""
        labels = {SHOWN[name][0] for name in self._unsaid & SHOWN.keys()}
        self._unsaid.clear()
        return {label: text for label, text in self.describe(step).items() if label in labels}


class Progress(RichProgressBar):
    """A bar in a terminal; elsewhere, such as in a log file, a line every tenth of the run.

    A figure that was not measured since the line before is not said again. Answers of an evaluation
    that takes long have a bar, or lines, of their own.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=4)
        self.is_terminal = sys.stdout.isatty()
        self._latest, self._pace = Latest(), Pace()
        self._stepped_at: float | None = None
        self._answers_bar: Any = None
        self._answers_since: float | None = None
        self._told_at = 0.0
        self._told_tenths = 0
        if not self.is_terminal:
            self.disable()

    def configure_columns(self, trainer: pl.Trainer) -> list[object]:
        """Return what a bar consists of; how long it takes is told by the figures behind it."""
        text, bar, count, *_ = super().configure_columns(trainer)
        bar.bar_width = BAR_WIDTH
        return [text, bar, count]

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the figures worth watching, under short names and ready to print."""
        figures = self._latest.describe(trainer.global_step, mark="@{:,}")
        figures.pop("lr", None)  # which is no news in a bar, and would not fit into 120 characters
        return {**figures, **self._tell_time(trainer, pl_module, in_terminal=True)}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the bar be that of the whole run, not of an epoch."""
        self._show_bar(pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        """Note what a validation has measured since the last step."""
        self._latest.note(trainer.callback_metrics, trainer.global_step)
        if self._stepped_at is None:
            self._stepped_at = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: SFTModule, *args: object) -> None:
        """Move the bar, or print a line."""
        self._time_step(self._latest.note(trainer.callback_metrics, trainer.global_step))
        if not trainer.is_global_zero:
            return
        step, total = trainer.global_step, pl_module.total_steps()
        if self.is_terminal:
            self._show_bar(pl_module)
            self._update(self.train_progress_bar_id, step)
            self._update_metrics(trainer, pl_module)
            self.refresh()
        elif step % max(1, total // LINES) == 0 or step == total:
            figures = self._latest.describe_new(step)
            figures |= self._tell_time(trainer, pl_module, in_terminal=False)
            shown = "  ".join(f"{label} {value}" for label, value in figures.items())
            print(f"step {step:,}/{total:,}  {shown}", flush=True)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the bar as it is now, so that what came of the run stands below it."""
        if self.is_terminal:
            self.refresh(hard=True)
            self.teardown(trainer, pl_module, stage="fit")

    def tell_answers(self, ended: int, total: int) -> None:
        """Show how many answers of an evaluation have ended; whoever evaluates calls it.

        Args:
            ended: Of this rank.
            total: Likewise.
        """
        if not self.trainer.is_global_zero:
            return
        now = time.perf_counter()
        if self._answers_since is None:
            self._answers_since = self._told_at = now
            self._told_tenths = 0
        if self.is_terminal:
            self._show_answers(ended, total)
        elif ended * 10 // total > self._told_tenths and now - self._told_at > QUIET_SECONDS:
            self._told_at, self._told_tenths = now, ended * 10 // total
            taken = format_seconds(now - self._answers_since)
            print(f"answered {ended:,}/{total:,} after {taken}", flush=True)
        if ended >= total:
            self._answers_since = None

    def _show_answers(self, ended: int, total: int) -> None:
        self._init_progress(self.trainer)
        if self.progress is None:
            return
        if self._answers_bar is None:
            self._answers_bar = self._add_task(total, "Answers")
        self.progress.update(self._answers_bar, completed=ended, total=total)
        if ended >= total:
            self.progress.remove_task(self._answers_bar)
            self._answers_bar = None
        self.refresh()

    def _show_bar(self, pl_module: Any) -> None:
        if self.progress is not None and self.train_progress_bar_id is None:
            self.train_progress_bar_id = self._add_task(pl_module.total_steps(), "Training")

    def _time_step(self, fresh: Iterable[str]) -> None:
        """Note how long the step took that has just ended, and an evaluation behind it."""
        now = time.perf_counter()
        evaluated = self._latest.value(EVALUATION) if EVALUATION in fresh else 0.0
        if evaluated:
            self._pace.add_evaluation(evaluated)
        if self._stepped_at is not None:
            self._pace.add_step(max(0.0, now - self._stepped_at - evaluated))
        self._stepped_at = now

    def _tell_time(self, trainer: pl.Trainer, module: Any, in_terminal: bool) -> dict[str, str]:
        """Return how long it is to the end and, in a terminal, to the next evaluation."""
        step, total = trainer.global_step, module.total_steps()
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        asked = [getattr(callback, "steps_between", None) for callback in callbacks]
        every = min((ask(trainer) for ask in asked if ask), default=None)
        count, upcoming = count_evaluations(step, total, every or math.inf)
        left = self._pace.seconds_for(total - step, count if every else 0)
        if left is None or step >= total:
            return {}
        told = {"left": format_seconds(left)}
        if in_terminal and every:
            told["eval in"] = format_seconds(self._pace.seconds_for(upcoming, 0) or 0)
        return told
