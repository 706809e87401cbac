"""Files of rows, one a line, such as kept answers: a full disk or a kill leaves whole rows.

A row is added whole or not at all, as far as the process lives to see to it. What tears a row all
the same is found when the file is read: a last line without an end, zeros that a file system puts
where data never came to the disk, and, by who knows the rows, a line that is none.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

SHOWN_LINES = 3
"""Numbers of damaged lines that are named."""
TEXTS = ("question", "output", "verdict")
"""What an answer has beside its step."""


class KeptAnswer(NamedTuple):
    """A line of `logs/generations.jsonl`, as it is and as it reads."""

    line: str
    values: dict[str, Any]

    @property
    def step(self) -> int:
        """After how many optimizer steps the model gave it."""
        return int(self.values["step"])


def append_rows(path: Path, text: str) -> None:
    """Add lines to a file, or nothing: what a full disk has taken of them is cut off again.

    Args:
        path: Is created where it is not there.
        text: Of whole lines.

    Raises:
        OSError: If they could not be written; it names the file.
    """
    with path.open("ab", buffering=0) as file:
        size, rest = os.fstat(file.fileno()).st_size, memoryview(text.encode())
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            file.truncate(size)
            raise OSError(error.errno, error.strerror, str(path)) from error


def read_lines(path: Path) -> list[str | None]:
    """Return the lines of a file without their ends; None for each that is torn.

    Raises:
        OSError: If it cannot be read.
    """
    *whole, tail = path.read_bytes().split(b"\n")
    return [*map(_decode, whole), *([None] if tail else [])]


def tell_damage(path: Path, lines: Sequence[int], what: str) -> None:
    """Say on the first rank that lines of a file are left out; nothing where there are none.

    Args:
        path: Of the file.
        lines: Their numbers, from 1.
        what: A line should be, such as "a row of 5 figures".
    """
    if lines:
        from lightning.pytorch.utilities import rank_zero_info

        more = f" and {len(lines) - SHOWN_LINES} more" if len(lines) > SHOWN_LINES else ""
        numbers = ", ".join(map(str, lines[:SHOWN_LINES])) + more
        rank_zero_info(
            f"{path}: left out line {numbers}, which is torn or damaged; expected {what}"
        )


def read_generations(path: Path) -> list[KeptAnswer]:
    """Return the answers that can be read; those that cannot are told. No file has none."""
    if not path.is_file():
        return []
    read = [_read_answer(line) for line in read_lines(path)]
    damaged = [number for number, answer in enumerate(read, start=1) if answer is None]
    tell_damage(path, damaged, "an answer with its step")
    return [answer for answer in read if answer]


def _read_answer(line: str | None) -> KeptAnswer | None:
    try:
        values = json.loads(line or "")
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return None
    if not all(isinstance(values.get(name), str) for name in TEXTS):
        return None
    return KeptAnswer(line or "", values)


def _decode(line: bytes) -> str | None:
    if b"\0" in line:
        return None
    try:
        return line.decode().removesuffix("\r")
    except UnicodeDecodeError:
        return None
