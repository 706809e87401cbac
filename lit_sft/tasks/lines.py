"""Where the rows of a file of lines start, found once and kept in the cache with their hash."""

import hashlib
from array import array
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate, compress, takewhile
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple

from lit_sft.errors import require
from lit_sft.files import replace_file
from lit_sft.tasks.plain import FileState, name_cached, read_state

PIECE = 2**16
"""Bytes of lines read at once; as objects of Python, short ones take several times that."""
HASH_BYTES = 32
"""Of a SHA-256, which the file of the cache opens with."""


class LineIndex(NamedTuple):
    """The rows of a file as it was at some time."""

    state: FileState
    digest: str
    """SHA-256 over the lines that are rows, in hexadecimal. Blank lines are no part of it, nor is
    whether the last line ends."""
    starts: Sequence[int]
    """The byte at which each row starts, and, last, the size of the file."""


def index_lines(path: Path) -> LineIndex:
    """Return the index of a file, made once for a file of a certain size and times of change.

    Raises:
        InputError: If the file is written meanwhile.
        OSError: If it cannot be read.
    """
    state, cached = read_state(path), name_cached(path, "lines", ".index")
    index = _load(cached, state) or _make(path, cached, state)
    require(
        read_state(path) == state,
        f"{path}: the file is written while it is read; start again when it is whole",
    )
    return index


def find_line(path: Path, start: int) -> int:
    """Return the number, from 1, of the line that begins at a byte."""
    with path.open("rb") as file:
        ends = accumulate(len(line) for line in file)
        return 1 + sum(1 for _ in takewhile(lambda end: end <= start, ends))


def _make(path: Path, cached: Path, state: FileState) -> LineIndex:
    starts, digest = _find_rows(path)
    if read_state(path) == state:
        with suppress(OSError):  # a cache that cannot be written costs memory, never a run
            with replace_file(cached) as staged, staged.open("wb") as file:
                file.write(digest)
                starts.tofile(file)
            return _load(cached, state) or LineIndex(state, digest.hex(), starts)
    return LineIndex(state, digest.hex(), starts)


def _load(cached: Path, state: FileState) -> LineIndex | None:
    """Return the index that the cache has; it is mapped into memory."""
    with suppress(OSError, ValueError, TypeError, IndexError):  # there is none, or it is damaged
        with cached.open("rb") as file:
            content = memoryview(mmap(file.fileno(), 0, access=ACCESS_READ))
        starts = content[HASH_BYTES:].cast("q")
        if starts[-1] == state.size:
            return LineIndex(state, content[:HASH_BYTES].hex(), starts)
    return None


def _find_rows(path: Path) -> tuple["array[int]", bytes]:
    """Return where rows start, and their hash, which takes as long again."""
    starts, start, digest, last = array("q"), 0, hashlib.sha256(), b""
    with path.open("rb") as file:
        while lines := file.readlines(PIECE):
            is_row = [not line.isspace() for line in lines]
            begins = list(accumulate(map(len, lines), initial=start))
            start = begins.pop()
            starts.extend(compress(begins, is_row))
            rows = b"".join(compress(lines, is_row))
            digest.update(rows)
            last = rows[-1:] or last
    if last != b"\n":
        digest.update(b"\n")
    starts.append(start)
    return starts, digest.digest()
