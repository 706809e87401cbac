"""Read JSON lines, and name the line that cannot be read."""

import json
from pathlib import Path
from typing import Any

from lit_sft.errors import InputError


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file, blank lines skipped.

    Args:
        path: A UTF-8 file with one JSON object a line.

    Raises:
        InputError: If the file is missing or empty, or a line is not UTF-8, not JSON or not an
            object; the message names file and line.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, line {number}: not UTF-8 (byte {line[error.start]:#04x} at column "
                f"{error.start + 1}); convert the file to UTF-8"
            ) from error
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})"
            ) from error
        if not isinstance(row, dict):
            raise InputError(
                f"{path}, line {number}: expected a JSON object, found {type(row).__name__}"
            )
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: holds no rows; expected one JSON object a line")
    return rows
