"""The figures of a run: handed to loggers at once, and one CSV file, a row an optimizer step."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lit_sft.errors import require
from lit_sft.files import replace_file, sync
from lit_sft.run.folder import RunFolder
from lit_sft.run.metrics_rows import parse_rows, split_cells
from lit_sft.run.records import append_rows, read_lines, tell_damage


def publish(trainer: pl.Trainer, metrics: Mapping[str, float | Tensor]) -> None:
    """Give figures to callbacks and loggers, under the number of optimizer steps taken.

    A checkpoint then never stands before what led to it is on record. `LightningModule.log` keeps
    what a step logs until the step's callbacks, which save checkpoints, are done: a run killed in
    between and resumed would lack the row.

    Args:
        trainer: In `fit`.
        metrics: Numbers by name, or tensors of shape `[]`.
    """
    values = {name: float(value) for name, value in metrics.items()}
    trainer.callback_metrics.update({name: torch.tensor(v) for name, v in values.items()})
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)


class MetricsFile(Logger):
    """Write `logs/metrics.csv` under a folder: a column a metric, a row an optimizer step.

    What is logged after the same number of steps shares a row. A row is on disk as soon as it is
    logged, and a resumed run goes on behind the step that it resumes from.

    Args:
        save_dir: The run's folder.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self._save_dir = Path(save_dir)
        self.path = RunFolder(save_dir).metrics
        self._rows: dict[int, dict[str, str]] = {}
        self._columns: list[str] = ["step"]
        self._on_disk = 0

    @property
    def name(self) -> str:
        """Empty: the folder is the run."""
        return ""

    @property
    def version(self) -> str:
        """Empty: the folder is the run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._save_dir)

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """Do nothing: `config.yaml` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add figures to the row of a step."""
        row = self._rows.setdefault(int(step or 0), {})
        is_new = not row
        row["step"] = str(int(step or 0))
        row |= {name: f"{value:.9g}" for name, value in metrics.items() if name != "epoch"}
        unseen = [name for name in row if name not in self._columns]
        if is_new and not unseen and self._on_disk == len(self._rows) - 1:
            append_rows(self.path, self._format([row]))
        else:
            self._columns += unseen
            self._rewrite()
        self._on_disk = len(self._rows)

    @rank_zero_only
    def resume_from(self, step: int) -> None:
        """Read back the file of an interrupted run, without the rows behind a step."""
        if not self.path.is_file():
            return
        self._columns, rows = read_metrics(self.path)
        self._rows = {number: row for number, row in rows.items() if number <= step}
        self._rewrite()
        self._on_disk = len(self._rows)

    @rank_zero_only
    def sync(self) -> None:
        """Wait until all rows are on the disk."""
        if self.path.is_file():
            sync(self.path)

    def _rewrite(self) -> None:
        with replace_file(self.path) as staged:
            header = dict(zip(self._columns, self._columns, strict=True))
            text = self._format([header, *self._rows.values()])
            staged.write_text(text, encoding="utf-8", newline="")

    def _format(self, rows: Iterable[Mapping[str, str]]) -> str:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns).writerows(rows)
        return text.getvalue()


def read_columns(path: Path) -> list[str]:
    """Return the names of the columns of a `metrics.csv`; no file has that of the step alone.

    Raises:
        InputError: If its first line is damaged: no row can be read without.
    """
    if not path.is_file():
        return ["step"]
    columns = split_cells(next(iter(read_lines(path)), None))
    require(
        columns[:1] == ["step"] and len(set(columns)) == len(columns),
        f"{path}: the first line is damaged; expected the names of the columns, step first. Put a "
        "copy of the file in its place, or move it away to go on without the figures so far",
    )
    return columns


def read_metrics(path: Path) -> tuple[list[str], dict[int, dict[str, str]]]:
    """Return the columns of a `metrics.csv`, and the figures of each row by its step.

    A row has what is not empty, its step included. A row that is torn or damaged is left out, which
    is told.

    Raises:
        InputError: As `read_columns`.
    """
    columns = read_columns(path)
    lines = read_lines(path)[1:] if path.is_file() else []
    rows, damaged = parse_rows(columns, lines)
    tell_damage(path, damaged, f"a row of {len(columns)} columns, each step once")
    return columns, rows
