"""Rows of Arrow tables: Parquet files, what `save_to_disk` wrote and the Hub; and their hash."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_sft.errors import InputError, require
from lit_sft.files import replace_file
from lit_sft.tasks.plain import FileState, name_cached_of, read_state

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import Array

HASHED_ROWS = 8192
"""Rows of a table that are hashed at once; another number gives another hash."""
SHA256 = re.compile(r"[0-9a-f]{64}")
SAVED = ("dataset_dict.json", "state.json")
"""What `save_to_disk` writes beside the data, of several splits and of one."""


class ArrowRows(Sequence[dict[str, Any]]):
    """The rows of a `datasets.Dataset`, each as it was written.

    Arrow makes one struct of the keys of all rows: in the arguments of a call, the keys of all
    other calls stand as None. A key of an object that holds None is left out, therefore; a column
    that does stays.

    Args:
        table: Whose rows are read when they are asked for.
    """

    def __init__(self, table: "Dataset") -> None:
        self.table = table.with_format(None)  # one that was saved as `torch` would give tensors
        self._contents: str | None = None
        self._states: dict[Path, FileState] = {}

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        self._require_unchanged()
        return _clean(self.table[int(index)])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Read from front to back, which is faster than row by row."""
        return map(_clean, self.table)

    def hash_contents(self) -> str:
        """Return a SHA-256 over all rows, in hexadecimal, made once for files of certain states.

        Reading a row raises `InputError` from then on if what the files hold has been changed.
        """
        if self._contents is None:
            files = [Path(file["filename"]) for file in self.table.cache_files]
            self._states = {file: read_state(file) for file in files}
            self._contents = _load_hash(self.table, files)
        return self._contents

    def _require_unchanged(self) -> None:
        """Look at the files, a microsecond each; if one was touched, hash the rows again."""
        for path, state in self._states.items():
            try:
                now = read_state(path)
            except OSError:
                continue  # what was removed or replaced is still mapped here
            if now == state or now.inode != state.inode:
                continue
            # To read behind the end of a mapped file that was cut would kill the process.
            is_same = now.size == state.size and hash_table(self.table) == self._contents
            require(
                is_same,
                f"{path}: the file has been changed, and its rows are no longer those that were "
                "read before; put back what it held, or start anew",
            )
            self._states[path] = now


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


def hash_table(table: "Dataset") -> str:
    """Return a SHA-256 over the columns and rows of a `datasets.Dataset`.

    It is the same for all ways to lay out a table in files, chunks and buffers.
    """
    digest = hashlib.sha256(json.dumps(table.column_names).encode())
    for part in table.with_format("arrow").iter(batch_size=HASHED_ROWS):
        for column in part.combine_chunks().columns:
            for array in column.chunks:
                _hash_array(digest.update, array)
    return digest.hexdigest()


def _hash_array(update: Callable[..., None], array: "Array") -> None:
    """Add the values of an array to a hash, by its `update`: the buffers may hold others."""
    import numpy as np
    import pyarrow as pa

    types, kind = pa.types, array.type
    if types.is_string(kind) or types.is_large_string(kind):
        update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)))
        texts = array.fill_null("").cast(pa.large_binary())
        first, last = texts.offset, texts.offset + len(texts) + 1
        offsets = np.frombuffer(texts.buffers()[1], np.int64)[first:last]
        update(np.diff(offsets))
        if texts.buffers()[2] is not None:
            update(memoryview(texts.buffers()[2])[offsets[0] : offsets[-1]])
    elif types.is_list(kind) or types.is_large_list(kind):
        update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)))
        update(array.value_lengths().fill_null(0).cast(pa.int64()).to_numpy())
        _hash_array(update, array.flatten())
    elif types.is_struct(kind):
        update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)))
        update(json.dumps([field.name for field in kind]).encode())
        for child in array.flatten():
            _hash_array(update, child)
    else:
        update(repr(array.to_pylist()).encode())


def _load_hash(table: "Dataset", files: Sequence[Path]) -> str:
    """Return `hash_table` from the cache, which has it for a table of files in certain states."""
    if not files:  # a table in memory
        return hash_table(table)
    # The fingerprint tells two tables of one file from each other.
    cached = name_cached_of(files, "tables", what=str(getattr(table, "_fingerprint", "")))
    with suppress(OSError, UnicodeDecodeError):
        known = cached.read_text()
        if SHA256.fullmatch(known):
            return known
    digest = hash_table(table)
    with suppress(OSError), replace_file(cached) as staged:  # it is made again then
        staged.write_text(digest)
    return digest


def _clean(row: dict[str, object]) -> dict[str, object]:
    return {key: _drop_nulls(value) for key, value in row.items()}


def _drop_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _drop_nulls(entry) for key, entry in value.items() if entry is not None}
    return [_drop_nulls(entry) for entry in value] if isinstance(value, list) else value
