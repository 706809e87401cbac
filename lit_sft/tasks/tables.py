"""Read tables, CSV and Parquet, and data sets of the Hub, as rows."""

import csv
import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from lit_sft.errors import InputError, require
from lit_sft.tasks.arrow import ArrowRows
from lit_sft.tasks.plain import write_out

EXCEL_SEPARATOR = re.compile(r"sep=(.)\r?\n")
"""What Excel writes before the header, where it is asked to."""
DELIMITERS = (",", ";", "\t")
SAVED = ("dataset_dict.json", "state.json")
"""What `save_to_disk` writes beside the data, of several splits and of one."""


def read_csv(path: Path) -> list[dict[str, str | None]]:
    """Return the rows of a CSV file, values as strings, and None for a cell that is empty.

    Commas, semicolons or tabs separate the fields, whichever gives the header the most columns.

    Raises:
        InputError: If the file cannot be read, is not UTF-8, has no row, a column twice, an open
            quote, a NUL byte, or a row with fewer or more fields than the header; the message names
            file and line.
    """
    csv.field_size_limit(sys.maxsize)  # the default of 128 KB is less than a long conversation
    try:
        with write_out(path).open(encoding="utf-8-sig", newline="") as file:
            delimiter = _find_delimiter(file)
            return _read_table(path, csv.reader(file, delimiter=delimiter, strict=True))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 (byte {error.object[error.start]:#04x}); convert it to UTF-8"
        ) from error


def _find_delimiter(file: TextIO) -> str:
    """Return what separates the columns of the header, and leave the file before that."""
    header = next((line for line in iter(file.readline, "") if line.strip(",;\t \r\n")), "")
    if stated := EXCEL_SEPARATOR.match(header):
        return stated[1]  # the next line is the header
    file.seek(0)
    counts = {x: len(next(csv.reader([header], delimiter=x), [])) for x in DELIMITERS}
    return max(DELIMITERS, key=lambda x: counts[x])  # the first of those that are equal


def read_parquet(paths: Sequence[Path]) -> ArrowRows:
    """Return the rows of Parquet files, memory-mapped from the cache of `datasets`.

    Raises:
        InputError: If a file cannot be read.
    """
    from datasets import Dataset

    try:
        return ArrowRows(Dataset.from_parquet([str(path) for path in paths]))
    except Exception as error:  # Arrow and datasets fail in many types
        reason = f"{type(error).__name__}: {error.__cause__ or error}"
        raise InputError(f"{paths[0]}: cannot be read as Parquet ({reason:.200})") from error


def load_saved(folder: Path) -> dict[str, ArrowRows]:
    """Return the splits of a folder that `save_to_disk` wrote; a set without any is `train`.

    Raises:
        InputError: If it cannot be read.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:  # Arrow and datasets fail in many types
        raise InputError(
            f"{folder}: cannot be read as `save_to_disk` writes ({type(error).__name__}: "
            f"{error!s:.200})"
        ) from error
    splits = found if isinstance(found, DatasetDict) else {"train": found}
    return {str(name): ArrowRows(rows) for name, rows in splits.items()}


@lru_cache(maxsize=8)
def load_hub(path: str, subset: str | None) -> dict[str, ArrowRows]:
    """Return all splits of a data set of the Hub, downloaded once and memory-mapped.

    Raises:
        InputError: If it cannot be loaded.
    """
    from datasets import load_dataset

    try:
        found: Any = load_dataset(path, subset)
        return {str(name): ArrowRows(rows) for name, rows in found.items()}
    except Exception as error:  # the Hub fails in a dozen types, none of them the user's concern
        raise InputError(
            f"the data set {path!r} could not be loaded from the Hub ({type(error).__name__}: "
            f"{error}); check the id and the network, or set the task's `path` to a local file or "
            "folder"
        ) from error


def _read_table(path: Path, reader: Any) -> list[dict[str, str | None]]:
    try:
        header = [name.strip() for name in next((x for x in reader if any(x)), [])]
        while header and not header[-1]:  # columns of a sheet that were never used
            header.pop()
        require(len(header) == len(set(header)), f"{path}, line 1: a column stands twice: {header}")
        rows: list[dict[str, str | None]] = []
        for fields in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(fields):
                continue  # a blank line, or an empty row of a sheet
            if not any(fields[len(header) :]):
                fields = fields[: len(header)]
            require(
                len(fields) == len(header),
                f"{where}: the row has {len(fields)} fields, but the header has {len(header)} "
                f"({', '.join(header)}); quote fields that hold commas or line breaks",
            )
            require(
                not any("\0" in field for field in fields),
                f"{where}: holds NUL bytes; the file is damaged, or not UTF-8",
            )
            rows.append({key: cell or None for key, cell in zip(header, fields, strict=True)})
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV ({error})") from error
    require(bool(rows), f"{path}: holds no rows; expected a line of column names, and rows")
    return rows
