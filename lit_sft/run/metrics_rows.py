"""The lines of a `metrics.csv`, read without torch: whole rows, and which lines are damaged."""

import csv
import re
from collections.abc import Sequence


def parse_rows(
    columns: Sequence[str], lines: Sequence[str | None]
) -> tuple[dict[int, dict[str, str]], list[int]]:
    """Return the figures of each row by its step, and the numbers of the lines that are none.

    Args:
        columns: Their names, step first.
        lines: Of the file, from its second; None for one that is torn.
    """
    rows: dict[int, dict[str, str]] = {}
    damaged = []
    for number, line in enumerate(lines, start=2):
        row = _read_row(columns, split_cells(line))
        if row is None or int(row["step"]) in rows:
            damaged.append(number)
        else:
            rows[int(row["step"])] = row
    return rows, damaged


def split_cells(line: str | None) -> list[str]:
    """Return the cells of a line, none where it is damaged."""
    try:
        return next(csv.reader([line or ""], strict=True), [])
    except csv.Error:
        return []


def _read_row(columns: Sequence[str], cells: Sequence[str]) -> dict[str, str] | None:
    """Return the figures of a row by column, or None where it cannot be one."""
    if len(cells) != len(columns) or not re.fullmatch(r"0|[1-9][0-9]{0,17}", cells[0]):
        return None
    figures = {name: cell for name, cell in zip(columns, cells, strict=True) if cell}
    try:
        for figure in figures.values():
            float(figure)
    except ValueError:
        return None
    return figures
