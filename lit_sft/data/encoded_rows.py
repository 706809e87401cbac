"""Encoded rows as flat arrays, and the cache that spares encoding them twice.

A row costs five bytes a token, in memory that loader workers share. There is no torch here, which
takes a second to import: `lit-sft inspect` does without it.
"""

import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from lit_sft.data.failures import FailedRows, Failure, name_error
from lit_sft.data.fingerprint import hash_request, make_cache_key
from lit_sft.data.lost_fields import OnLostField
from lit_sft.data.messages import OnMarker
from lit_sft.data.overlength import OnOverlength, describe_overlength, encode_to_fit
from lit_sft.data.splits import Conversation
from lit_sft.errors import InputError, require
from lit_sft.files import replace_file
from lit_sft.types import IGNORE_INDEX, Example

CHUNK_ROWS = 1024
"""Rows encoded at once: enough to share the costs of a call, few enough to hold as Python lists.

The tokenizer splits them over all cores, unless `TOKENIZERS_PARALLELISM` forbids it.
"""
LARGE_SET_ROWS = 50_000
"""Rows from which on encoding takes long enough to show a bar."""
EXAMINED_ROWS = 8192
"""Rows that are looked at one by one once one has failed, from its chunk on: for some seconds."""
LOST, MARKED = "lost ", "marked "
"""Open the names of arrays of a cache file that say which rows lost a field, or hold a mark."""


class EncodedRows:
    """The kept rows of a split, as `Example`s by position.

    Args:
        input_ids: int32 `[all_tokens]`, the rows end to end.
        supervised: bool `[all_tokens]`, where a label is not `IGNORE_INDEX`.
        offsets: int64 `[kept + 1]`, where each row starts, and the end of the last.
        dropped: int64 `[dropped]`, the positions of the rows that were left out, among those given:
            they are too long, or hold a mark of turns, with `on_marker="drop"`.
        truncated: int64 `[truncated]`, the positions of the rows that were cut, likewise.
        whole_lengths: int64 `[dropped + truncated]`, in tokens, of the dropped rows and then of the
            truncated ones.
        lost: By field, such as `assistant.thinking`, int64 `[turns]`: for each turn that has lost
            it, the position of its row among those given.
        marked: By mark of turns, such as `### Response:`, int64 `[rows]`: the positions of the rows
            that hold it as plain text.

    Raises:
        ValueError: If the arrays do not fit each other.
    """

    def __init__(
        self,
        input_ids: np.ndarray,
        supervised: np.ndarray,
        offsets: np.ndarray,
        dropped: np.ndarray,
        truncated: np.ndarray,
        whole_lengths: np.ndarray,
        lost: Mapping[str, np.ndarray] | None = None,
        marked: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        if not len(input_ids) == len(supervised) == offsets[-1] or (np.diff(offsets) < 0).any():
            raise ValueError("the arrays of the encoded rows do not fit each other")
        self.input_ids, self.supervised, self.offsets = input_ids, supervised, offsets
        self.dropped, self.truncated, self.whole_lengths = dropped, truncated, whole_lengths
        self.lost, self.marked = dict(lost or {}), dict(marked or {})

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Example:
        start, stop = self.offsets[index : index + 2].tolist()
        ids = self.input_ids[start:stop]
        labels = np.where(self.supervised[start:stop], ids, IGNORE_INDEX)
        return Example(ids.tolist(), labels.tolist())

    def lengths(self) -> list[int]:
        """Return the number of tokens of each kept row."""
        lengths: list[int] = np.diff(self.offsets).tolist()
        return lengths

    def num_supervised(self) -> int:
        """Return the number of tokens that carry loss, over all kept rows."""
        return int(self.supervised.sum())

    def find_unfit(self) -> list[tuple[int, int]]:
        """Return the position and the length in tokens of every row left out or cut, in order."""
        positions = [*self.dropped.tolist(), *self.truncated.tolist()]
        return sorted(zip(positions, self.whole_lengths.tolist(), strict=True))


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    max_length: int,
    on_overlength: OnOverlength,
    on_lost_field: OnLostField = "error",
    on_marker: OnMarker = "keep",
) -> EncodedRows:
    """Encode conversations, and fit those over `max_length` tokens as `encode_to_fit` does.

    Raises:
        FailedRows: If the mask of some rows cannot be proven; the message names them.
        InputError: If every row is left out, or, with `on_overlength="error"`, if any is too long.
    """
    ids, labels = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    lengths: list[int] = []
    dropped: dict[int, int] = {}
    truncated: dict[int, int] = {}
    lost: dict[str, list[int]] = defaultdict(list)
    marked: dict[str, list[int]] = defaultdict(list)
    how: Any = (max_length, on_overlength, on_lost_field, on_marker)
    for first in _track(range(0, len(conversations), CHUNK_ROWS), len(conversations)):
        names, chats = zip(*conversations[first : first + CHUNK_ROWS], strict=True)
        try:
            fitted = encode_to_fit(tokenizer, chats, names, *how)
        except InputError:
            failures = _find_failures(tokenizer, conversations[first:], *how)
            if not failures:
                raise
            raise FailedRows(failures, len(conversations)) from None
        for position, (example, length, fields, markers) in enumerate(fitted, start=first):
            if length > max_length or example is None:
                (truncated if example else dropped)[position] = length
            for marker in markers:
                marked[marker].append(position)
            for field in fields:
                lost[field.name].append(position)
        kept = [row.example for row in fitted if row.example]
        lengths += [len(example.input_ids) for example in kept]
        ids.append(_join([example.input_ids for example in kept]))
        labels.append(_join([example.labels for example in kept]))
    overlength = [(conversations[i][0], n) for i, n in dropped.items() if n > max_length]
    require(
        on_overlength != "error" or not overlength,
        f"{describe_overlength(overlength, max_length)}; raise it, or set data.on_overlength to "
        "drop, truncate_prompt or truncate",
    )
    require(
        bool(lengths),
        f"all {len(dropped)} rows, from {conversations[0][0]} on, are longer than "
        f"data.max_length={max_length} tokens; raise it"
        if len(overlength) == len(dropped)
        else f"all {len(dropped)} rows, from {conversations[0][0]} on, are left out: "
        f"{len(dropped) - len(overlength)} hold {', '.join(map(repr, sorted(marked)))}; set "
        "data.on_marker to keep",
    )
    return EncodedRows(
        input_ids=np.concatenate(ids),
        supervised=np.concatenate(labels) != IGNORE_INDEX,
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        dropped=np.array(list(dropped), dtype=np.int64),
        truncated=np.array(list(truncated), dtype=np.int64),
        whole_lengths=np.array([*dropped.values(), *truncated.values()], dtype=np.int64),
        lost={name: np.array(lost[name], dtype=np.int64) for name in sorted(lost)},
        marked={name: np.array(marked[name], dtype=np.int64) for name in sorted(marked)},
    )


def _find_failures(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], *how: Any
) -> list[Failure]:
    """Return the rows, of the first `EXAMINED_ROWS`, that cannot be encoded."""
    failures = []
    for name, chat in conversations[:EXAMINED_ROWS]:
        try:
            encode_to_fit(tokenizer, [chat], [name], *how)
        except InputError as error:
            failures.append(name_error(name, error))
    return failures


def load_or_encode(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    max_length: int,
    on_overlength: OnOverlength,
    cache_dir: Path,
    on_lost_field: OnLostField = "error",
    on_marker: OnMarker = "keep",
) -> tuple[EncodedRows, str]:
    """Return the encoded rows, from the cache where it knows them, and the hash of what was asked.

    A damaged cache file is made again; a cache that cannot be written is a warning.

    Raises:
        InputError: As `encode_rows`.
    """
    request = hash_request(tokenizer, conversations, max_length, on_overlength, on_marker)
    path = cache_dir / f"{make_cache_key(request)}.safetensors"
    encoded = _load(path)
    if encoded is None or _is_refused(encoded, on_lost_field, on_marker):
        how: Any = (max_length, on_overlength, on_lost_field, on_marker)
        encoded = encode_rows(tokenizer, conversations, *how)
        try:
            _save(encoded, path)
        except (OSError, SafetensorError) as error:
            warnings.warn(
                f"the token cache {cache_dir} cannot be written ({error}): this run goes on "
                "without it, and the next one encodes again; set data.cache_dir to another folder",
                stacklevel=2,
            )
    return encoded, request


def _is_refused(encoded: EncodedRows, on_lost_field: OnLostField, on_marker: OnMarker) -> bool:
    """Return whether rows of the cache hold what is an error now; to encode them again names it."""
    return bool(
        (encoded.lost and on_lost_field == "error") or (encoded.marked and on_marker == "error")
    )


def _load(path: Path) -> EncodedRows | None:
    """Return the rows of a cache file, or None where it is missing or damaged."""
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
            if (file.metadata() or {}).get("crc32") == _checksum(arrays):
                by_name: Any = {
                    kind.strip(): {
                        x.removeprefix(kind): arrays.pop(x) for x in [*arrays] if x.startswith(kind)
                    }
                    for kind in (LOST, MARKED)
                }
                return EncodedRows(**arrays, **by_name)
    except (SafetensorError, TypeError, ValueError, OSError):
        pass  # a damaged cache costs an encoding, never a run
    return None


def _save(encoded: EncodedRows, path: Path) -> None:
    """Two runs may fill one cache at once: each writes its own file, the last rename wins."""
    arrays = {name: x for name, x in vars(encoded).items() if isinstance(x, np.ndarray)}
    arrays |= {f"{LOST}{name}": rows for name, rows in encoded.lost.items()}
    arrays |= {f"{MARKED}{name}": rows for name, rows in encoded.marked.items()}
    with replace_file(path) as staged:
        save_file(arrays, staged, metadata={"crc32": _checksum(arrays)})


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(arrays[name].data, crc)
    return f"{crc:08x}"


def _track(chunks: Sequence[int], rows: int) -> Iterable[int]:
    console = Console(stderr=True)
    return track(chunks, f"encoding {rows:,} rows", console=console, disable=rows < LARGE_SET_ROWS)


def _join(rows: Sequence[Sequence[int]]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=sum(map(len, rows)))
