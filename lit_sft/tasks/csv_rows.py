"""Read CSV and TSV as rows, and name the line that cannot be read."""

import csv
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lit_sft.errors import InputError, require
from lit_sft.tasks.plain import write_out

if TYPE_CHECKING:
    from _csv import Reader

EXCEL_SEPARATOR = re.compile(r"sep=(.)\r?\n")
"""What Excel writes before the header, where it is asked to."""
DELIMITERS = (",", ";", "\t")


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


def _read_table(path: Path, reader: "Reader") -> list[dict[str, str | None]]:
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
            if len(fields) != len(header):
                raise InputError(
                    f"{where}: the row has {len(fields)} fields, but the header has {len(header)} "
                    f"({', '.join(header)}); quote fields that hold commas or line breaks"
                )
            if any("\0" in field for field in fields):
                raise InputError(f"{where}: holds NUL bytes; the file is damaged, or not UTF-8")
            rows.append({key: cell or None for key, cell in zip(header, fields, strict=True)})
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV ({error})") from error
    require(bool(rows), f"{path}: holds no rows; expected a line of column names, and rows")
    return rows
