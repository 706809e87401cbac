"""Read tables, CSV and Parquet, and data sets of the Hub, as rows."""

import csv
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lit_sft.errors import InputError, require


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file (or of one with tabs, `.tsv`), all values as strings.

    Raises:
        InputError: If the file cannot be read, is not UTF-8, has no row, a column twice, an open
            quote, a NUL byte, or a row with fewer or more fields than the header; the message names
            file and line.
    """
    csv.field_size_limit(sys.maxsize)  # the default of 128 KB is less than a long conversation
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(
                file, "excel-tab" if path.suffix == ".tsv" else "excel", strict=True
            )
            return _read_table(path, reader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 (byte {error.object[error.start]:#04x}); convert it to UTF-8"
        ) from error


def read_parquet(paths: Sequence[Path]) -> Any:
    """Return a `datasets.Dataset` of Parquet files, memory-mapped from the cache of `datasets`.

    Raises:
        InputError: If a file cannot be read.
    """
    from datasets import Dataset

    try:
        return Dataset.from_parquet([str(path) for path in paths])
    except Exception as error:  # Arrow and datasets fail in many types
        reason = f"{type(error).__name__}: {error.__cause__ or error}"
        raise InputError(f"{paths[0]}: cannot be read as Parquet ({reason:.200})") from error


@lru_cache(maxsize=8)
def load_hub(path: str, subset: str | None) -> Any:
    """Return a `datasets.DatasetDict` of all splits, downloaded once and memory-mapped.

    Raises:
        InputError: If it cannot be loaded.
    """
    from datasets import load_dataset

    try:
        return load_dataset(path, subset)
    except Exception as error:  # the Hub fails in a dozen types, none of them the user's concern
        raise InputError(
            f"the data set {path!r} could not be loaded from the Hub ({type(error).__name__}: "
            f"{error}); check the id and the network, or set the task's `path` to a local file or "
            "folder"
        ) from error


def _read_table(path: Path, reader: Any) -> list[dict[str, str]]:
    try:
        header: list[str] = next(reader, [])
        require(len(header) == len(set(header)), f"{path}, line 1: a column stands twice: {header}")
        rows = []
        for fields in reader:
            where = f"{path}, line {reader.line_num}"
            if not fields:
                continue  # a blank line
            require(
                len(fields) == len(header),
                f"{where}: the row has {len(fields)} fields, but the header has {len(header)} "
                f"({', '.join(header)}); quote fields that hold commas or line breaks",
            )
            require(
                not any("\0" in field for field in fields),
                f"{where}: holds NUL bytes; the file is damaged, or not UTF-8",
            )
            rows.append(dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV ({error})") from error
    require(bool(rows), f"{path}: holds no rows; expected a line of column names, and rows")
    return rows
