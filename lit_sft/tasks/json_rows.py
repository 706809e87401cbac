"""Read JSON and JSON lines, and name the line that cannot be read."""

import json
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from lit_sft.errors import InputError, require
from lit_sft.tasks.formats import COLUMNS
from lit_sft.tasks.plain import find_line, index_lines, read_ending, read_state, write_out


class JsonLines(Sequence[dict[str, Any]]):
    """The objects of a JSON-lines file, each read from the disk when it is asked for.

    Only where the lines start is kept, at 8 bytes a row, in a file of the cache that is mapped into
    memory: it is made once for a file of a certain size and times of change. Blank lines are no
    rows; a byte order mark and CRLF are no trouble.

    Args:
        path: A file with one JSON object a line, in UTF-8, or as `write_out` reads it.

    Raises:
        InputError: If the file is missing or empty, or is being written. Reading a row raises it if
            the line is not UTF-8, not JSON, not an object or has a key twice, when the message
            names file and line, and if the file has been changed meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.plain = write_out(path)
            self._index = index_lines(self.plain)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        self._contents = self._index.digest
        if not len(self):
            raise InputError(f"{path}: holds no rows; expected one JSON object a line")

    def __reduce__(self) -> Any:
        # A loader worker maps the index for itself, and must find the same rows.
        return JsonLines, (self.path,), self._contents

    def __setstate__(self, contents: str) -> None:
        self._contents = contents

    def __len__(self) -> int:
        return len(self._index.starts) - 1

    def __getitem__(self, index: Any) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        with self._open() as file:
            start = self._index.starts[index % len(self)]
            file.seek(start)
            line = file.readline()
        return self._read(line, start)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Read the file once from front to back, which is faster than row by row."""
        with self._open() as file:
            start = 0
            for line in file:
                if not line.isspace():
                    yield self._read(line, start)
                start += len(line)

    def hash_contents(self) -> str:
        """Return a SHA-256 over the rows, as `LineIndex` has it."""
        return self._contents

    def _open(self) -> BinaryIO:
        """Open the file, which must hold the rows that it held; looked at in a microsecond.

        One that was touched, or put in place once more, is indexed again.
        """
        try:
            file = self.plain.open("rb")
            while (read_state(file.fileno()), self._contents) != self._index[:2]:
                file.close()
                self._index = index_lines(self.plain)
                require(
                    self._index.digest == self._contents,
                    f"{self.path}: the file has been changed, and its rows are no longer those "
                    "that were read before; put back what it held, or start anew",
                )
                file = self.plain.open("rb")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from error
        return file

    def _read(self, line: bytes, start: int) -> dict[str, object]:
        try:
            return _read_object(line.rstrip(b"\r\n").removeprefix(b"" if start else BOM_UTF8))
        except InputError as error:
            where = f"{self.path}, line {find_line(self.plain, start)}"
            is_cut = start == self._index.starts[-2] and not line.endswith(b"\n")
            hint = "; it is the last line: was the file written to its end?" if is_cut else ""
            if read_ending(self.path) != ".json" and line.strip()[:1] in (line.strip(), b"["):
                hint = "; if the file is one list, or JSON over several lines, name it .json"
            raise InputError(f"{where}: {error}{hint}") from error.__cause__


def read_json(path: Path) -> Sequence[dict[str, object]]:
    """Return the objects of a JSON file: of a list, of its lines, or one after the other.

    Raises:
        InputError: As `JsonLines`; for a list, it counts the rows from 0. Also for one object that
            is no row, such as one that holds the list of rows, or a table by columns.
    """
    try:
        plain = write_out(path)
        with plain.open("rb") as file:
            first = next((line for line in file if not line.isspace()), b"")
        first = first.removeprefix(BOM_UTF8).strip()
        if first.startswith(b"{") and _is_json(first):
            rows: Sequence[dict[str, Any]] = JsonLines(path)
        else:
            rows = _read_whole(path, plain.read_bytes().removeprefix(BOM_UTF8))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if len(rows) == 1:
        _refuse_other_objects(path, rows[0])
    return rows


def _read_whole(path: Path, content: bytes) -> Sequence[dict[str, object]]:
    """Return the objects of a list, or those that stand one after the other."""
    is_list = content.lstrip().startswith(b"[")
    try:
        rows: list[Any] = _parse(content) if is_list else list(_read_objects(content))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error.__cause__
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {number}: expected an object, found {row!r:.60}")
    if not rows:
        raise InputError(f"{path}: holds no rows; expected a list of objects, or one a line")
    return rows


def _read_objects(content: bytes) -> Iterator[object]:
    """Yield the values that stand one after the other, over any number of lines."""
    text = _decode(content)
    at = 0
    while rest := text[at:].lstrip():
        at = len(text) - len(rest)
        value, at = _complain(partial(DECODER.raw_decode, text, at), content)
        yield value


def _refuse_other_objects(path: Path, row: dict[str, Any]) -> None:
    """Refuse an object that is all there is in a file, unless it may be a row."""
    turns = {columns[0] for columns in COLUMNS.values() if len(columns) == 1}
    hint = ""
    for key, value in row.items():
        holds_objects = isinstance(value, list) and value and isinstance(value[0], dict)
        if holds_objects and key not in turns and not {"role", "from"} & value[0].keys():
            hint = hint or f"; if its rows are the list under {key!r}, save that list"
    lists = [value for value in row.values() if isinstance(value, list)]
    is_table = len(lists) == len(row) and not any(isinstance(x, dict) for v in lists for x in v)
    is_table |= bool(row) and all(isinstance(value, dict) for value in row.values())  # pandas' own
    if is_table:
        hint = "; if it is a table by columns, write it by rows"
    if hint:
        raise InputError(
            f"{path}: holds one object, with the keys {', '.join(map(repr, row))}, and no rows; "
            f"expected a list of objects, or one a line{hint}"
        )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _read_object(line: bytes) -> dict[str, object]:
    row = _parse(line)
    if not isinstance(row, dict):
        raise InputError(f"expected a JSON object, found {type(row).__name__}")
    return row


def _parse(content: bytes) -> Any:
    text = _decode(content)
    return _complain(lambda: DECODER.decode(text), content)


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8 (byte {content[error.start]:#04x} at column {error.start + 1}); convert "
            "the file to UTF-8"
        ) from error


def _complain(read: Callable[[], Any], content: bytes) -> Any:
    """Return what `read` does, its errors told in words of here."""
    try:
        return read()
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column" if error.lineno > 1 else "column"
        nul = "; it holds NUL bytes: it is damaged, or not UTF-8" if b"\0" in content else ""
        raise InputError(f"not JSON ({error.msg} at {place} {error.colno}){nul}") from error
    except RecursionError as error:
        raise InputError("not readable: its values are nested too deeply") from error
    except InputError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"not readable: {error}") from error


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise InputError(f"the key {twice!r} stands twice in one object")
    return row


DECODER = json.JSONDecoder(object_pairs_hook=_refuse_duplicates)
