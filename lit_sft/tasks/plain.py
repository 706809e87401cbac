"""Data files as plain UTF-8, and where their rows start: what is made of a file, kept in the cache.

A file that is compressed or in UTF-16 is written out once; the lines of any are found once, with
their hash. Both hold for a file in a certain state, which the system tells without reading it.
"""

import codecs
import gzip
import hashlib
import os
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate, compress, takewhile
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, NamedTuple, cast

from lit_sft.errors import InputError, require
from lit_sft.files import replace_file
from lit_sft.paths import default_cache_dir

COMPRESSED = (".gz", ".zst")
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks; the first of UTF-32 begins as the first of UTF-16 does."""
PIECE_BYTES = 2**20
"""Bytes that are written out at once."""
LINES_BYTES = 2**16
"""Bytes of lines read at once; as objects of Python, short ones take several times that."""
HASH_BYTES = 32
"""Of a SHA-256, which the file of the cache opens with."""


def read_ending(path: Path) -> str:
    """Return the ending that tells the kind of a file: `.jsonl` of `a.jsonl.gz`."""
    return (Path(path.stem) if _is_packed(path) else path).suffix.lower()


def remove_endings(path: Path) -> str:
    """Return the name of a file without its endings: `a` of `a.jsonl.gz`."""
    return Path(path.stem).stem if _is_packed(path) else path.stem


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSED


class FileState(NamedTuple):
    """What changes with the content of a file, as the system tells it without reading the file.

    The time of its last modification alone can be set back: unpacked from archives, two versions of
    a file may have one size and one time.
    """

    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def read_state(file: Path | int) -> FileState:
    """Return the state of a file, by its path or its open descriptor.

    Raises:
        OSError: If there is no such file.
    """
    state = os.stat(file)  # noqa: PTH116 (a Path has none for descriptors)
    return FileState(state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def name_cached(path: Path, folder: str, ending: str = "") -> Path:
    """Return where the cache keeps what is made of a file of a certain size and times of change.

    Args:
        path: The file.
        folder: Of the cache.
        ending: Of the name.

    Raises:
        OSError: If there is no such file.
    """
    return name_cached_of([path], folder, ending)


def name_cached_of(paths: Sequence[Path], folder: str, ending: str = "", what: str = "") -> Path:
    """Return where the cache keeps what is made of several files, as `name_cached` does.

    Args:
        paths: The files, in order.
        folder: Of the cache.
        ending: Of the name.
        what: Is made of them, where one may make several things.
    """
    states = [f"{path.resolve()} {' '.join(map(str, read_state(path)))}" for path in paths]
    key = "\n".join([*states, what])
    return default_cache_dir() / folder / (hashlib.sha256(key.encode()).hexdigest() + ending)


def write_out(path: Path) -> Path:
    """Return a file that holds the same as plain UTF-8: itself, or a copy in the cache.

    The copy is made once for a file of a certain size and times of change.

    Raises:
        InputError: If the file is damaged, or the copy cannot be written.
        OSError: If the file cannot be opened.
    """
    copy = name_cached(path, "plain", read_ending(path))
    try:
        with _open(path) as source:
            head = source.read(4)
        encoding = next((name for mark, name in MARKS if head.startswith(mark)), None)
        if not _is_packed(path) and encoding is None:
            return path
        if not copy.is_file():
            with replace_file(copy) as staged, _open(path) as source, staged.open("wb") as target:
                for piece in _read_pieces(source, encoding):
                    target.write(piece)
        return copy
    except UnicodeDecodeError as error:
        reason = f"not {error.encoding} from end to end ({error.reason})"
        raise InputError(f"{path}: {reason}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: the archive is damaged, or cut ({error})") from error
    except OSError as error:
        if _is_packed(path) and error.errno is None:  # what Arrow raises of an archive
            raise InputError(f"{path}: the archive is damaged, or cut ({error})") from error
        is_own = error.filename == str(path)
        what = "cannot be read" if is_own else "cannot be written out into the cache"
        raise InputError(f"{path}: {what} ({error.strerror or error})") from error


def _read_pieces(source: IO[bytes], encoding: str | None) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)() if encoding else None
    while piece := source.read(PIECE_BYTES):
        yield decoder.decode(piece).encode() if decoder else piece
    if decoder:
        yield decoder.decode(b"", final=True).encode()


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to read the bytes that it holds once it is unpacked."""
    if path.suffix.lower() == ".gz":
        with gzip.open(path) as unpacked:
            yield cast(IO[bytes], unpacked)
    elif path.suffix.lower() == ".zst":
        import pyarrow

        with pyarrow.input_stream(str(path), compression="zstd") as stream:
            yield stream
    else:
        with path.open("rb") as file:
            yield file


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
    index = _load_index(cached, state) or _make_index(path, cached, state)
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


def _make_index(path: Path, cached: Path, state: FileState) -> LineIndex:
    starts, digest = _find_rows(path)
    if read_state(path) == state:
        with suppress(OSError):  # a cache that cannot be written costs memory, never a run
            with replace_file(cached) as staged, staged.open("wb") as file:
                file.write(digest)
                starts.tofile(file)
            return _load_index(cached, state) or LineIndex(state, digest.hex(), starts)
    return LineIndex(state, digest.hex(), starts)


def _load_index(cached: Path, state: FileState) -> LineIndex | None:
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
        while lines := file.readlines(LINES_BYTES):
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
