"""The figures of a run as one CSV file, one row an optimizer step."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_sft.files import replace_file

METRICS = Path("logs") / "metrics.csv"
"""Under the run's folder."""


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
        self.path = self._save_dir / METRICS
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

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
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
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        else:
            self._columns += unseen
            self._rewrite()
        self._on_disk = len(self._rows)

    def last_figures(self) -> dict[str, float]:
        """Return the last value of each metric, of the whole run and not of this process alone."""
        figures: dict[str, float] = {}
        for step in sorted(self._rows):
            figures |= {k: float(v) for k, v in self._rows[step].items() if k != "step"}
        return figures

    @rank_zero_only
    def resume_from(self, step: int) -> None:
        """Read back the file of an interrupted run, without the rows behind a step."""
        if not self.path.is_file():
            return
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            self._columns = list(reader.fieldnames or self._columns)
            self._rows = {
                int(row["step"]): {name: value for name, value in row.items() if value}
                for row in reader
                if int(row["step"]) <= step
            }
        self._rewrite()
        self._on_disk = len(self._rows)

    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self._rows.values())
        with replace_file(self.path) as staged:
            staged.write_text(text.getvalue(), newline="")
