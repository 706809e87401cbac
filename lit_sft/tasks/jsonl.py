"""Read JSON lines, and name the line that cannot be read."""

import json
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

from lit_sft.errors import InputError


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file, blank lines skipped.

    Args:
        path: A UTF-8 file with one JSON object a line; a byte order mark and CRLF are no trouble.

    Raises:
        InputError: If the file is missing or empty, or a line is not UTF-8, not JSON, not an object
            or has a key twice; the message names file and line.
    """
    try:
        lines = path.read_bytes().removeprefix(BOM_UTF8).split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _read_object(line)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error.__cause__
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: holds no rows; expected one JSON object a line")
    return rows


def _read_object(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_refuse_duplicates)
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8 (byte {line[error.start]:#04x} at column {error.start + 1}); convert the "
            "file to UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise InputError("not readable: its values are nested too deeply") from error
    if not isinstance(row, dict):
        raise InputError(f"expected a JSON object, found {type(row).__name__}")
    return row


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"the key {twice!r} stands twice in one object")
    return row
