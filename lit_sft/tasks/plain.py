"""Files as plain UTF-8: what is compressed or in UTF-16 is written out once, into the cache."""

import codecs
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lit_sft.errors import InputError
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
PIECE = 2**20
"""Bytes that are written out at once."""


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


def _read_pieces(source: Any, encoding: str | None) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)() if encoding else None
    while piece := source.read(PIECE):
        yield decoder.decode(piece).encode() if decoder else piece
    if decoder:
        yield decoder.decode(b"", final=True).encode()


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Open a file to read the bytes that it holds once it is unpacked."""
    if path.suffix.lower() == ".gz":
        with gzip.open(path) as file:
            yield file
    elif path.suffix.lower() == ".zst":
        import pyarrow

        with pyarrow.input_stream(str(path), compression="zstd") as stream:
            yield stream
    else:
        with path.open("rb") as file:
            yield file
