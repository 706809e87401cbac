"""TensorBoard in the run's folder, with the sample answers and the report beside the figures."""

import html
import re
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

MOST_IN_A_CELL = 1_000
"""Characters of an answer in a table."""


class TensorBoardRun(TensorBoardLogger):
    """Lightning's `TensorBoardLogger`, in the run's folder, with tables of the sample answers.

    On the command line, `--trainer.logger TensorBoardLogger` stands for it. It takes `tensorboard`
    or `tensorboardX`.

    Args:
        save_dir: Where `tensorboard/` is made; without one, in the run's folder.
    """

    def __init__(self, save_dir: str | None = None) -> None:
        super().__init__(save_dir or ".", name="", version="tensorboard", default_hp_metric=False)
        self._folder_is_given = save_dir is not None

    def keep_in(self, folder: str | Path) -> None:
        """Put `tensorboard/` in the run's folder; what the constructor was given comes first."""
        if not self._folder_is_given:
            self._root_dir = str(folder)

    @rank_zero_only
    def log_table(
        self, key: str, columns: Sequence[str], data: Sequence[Sequence[object]], step: int
    ) -> None:
        """Add a table, as text that TensorBoard sets as one.

        Args:
            key: Its name.
            columns: Their headings.
            data: Its rows.
            step: Optimizer steps taken.
        """
        self.experiment.add_text(key, format_table(columns, data), step)

    @rank_zero_only
    def log_report(self, path: Path) -> None:
        """Say where the report is: TensorBoard keeps no files."""
        self.experiment.add_text("report", f"`{path.resolve()}`")
        self.experiment.close()


def format_table(columns: Sequence[str], data: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown, in which whatever the cells say is text."""
    heading, *rows = (f"| {' | '.join(map(_format_cell, row))} |" for row in [columns, *data])
    return "\n".join([heading, "|" + " --- |" * len(columns), *rows])


def _format_cell(value: object) -> str:
    text = html.escape(str(value)[:MOST_IN_A_CELL], quote=False)
    return "<br>".join(re.sub(r"([\\`*_\[\]|])", r"\\\1", text).splitlines())
