"""Encoded rows as flat tensors, and the cache that spares encoding them twice.

A row costs five bytes a token on disk, is mapped rather than read, and is shared by loader workers.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from lit_sft.data.encode import encode_chat
from lit_sft.errors import InputError, require
from lit_sft.tasks.base import ChatTask, Row
from lit_sft.types import IGNORE_INDEX, Example, Message

ENCODING_VERSION = 1
"""Part of every fingerprint: raise it when `encode_chat` gives other ids or labels than before."""

NamedRow = tuple[str, Row]
"""A row and what to call it in an error, such as `"train row 17"`."""
Conversation = tuple[str, list[Message]]
"""A row's messages under the row's name."""


class EncodedRows(Dataset[Example]):
    """The kept rows of a split, as `Example`s by position.

    Args:
        input_ids: int32 `[all_tokens]`, the rows end to end.
        supervised: bool `[all_tokens]`, where a label is not `IGNORE_INDEX`.
        offsets: int64 `[kept + 1]`, where each row starts, and the end of the last.
        dropped: int64 `[dropped]`, the numbers of the rows that were too long.
    """

    def __init__(
        self, input_ids: Tensor, supervised: Tensor, offsets: Tensor, dropped: Tensor
    ) -> None:
        self.input_ids, self.supervised, self.offsets = input_ids, supervised, offsets
        self.dropped = dropped

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Example:
        row = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        ids = self.input_ids[row]
        labels = torch.where(self.supervised[row], ids, IGNORE_INDEX)
        return Example(ids.tolist(), labels.tolist())

    def lengths(self) -> list[int]:
        """Return the number of tokens of each kept row."""
        lengths: list[int] = self.offsets.diff().tolist()
        return lengths

    def num_supervised(self) -> int:
        """Return the number of tokens that carry loss, over all kept rows."""
        return int(self.supervised.sum())


def read_conversations(task: ChatTask, rows: Sequence[NamedRow]) -> list[Conversation]:
    """Return the messages of every row under its name.

    Raises:
        InputError: If the task cannot read a row; the message names it.
    """
    conversations = []
    for name, row in rows:
        with _naming(name):
            conversations.append((name, task.messages(row)))
    return conversations


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], max_length: int
) -> EncodedRows:
    """Encode conversations, dropping those over `max_length` tokens whole.

    Raises:
        InputError: If a row's mask cannot be proven (the message names the row), or if every row
            is too long.
    """
    kept: list[Example] = []
    dropped: list[int] = []
    for number, (name, messages) in enumerate(conversations):
        with _naming(name):
            example = encode_chat(tokenizer, messages)
        if len(example.input_ids) > max_length:
            dropped.append(number)
        else:
            kept.append(example)
    require(
        bool(kept),
        f"all {len(dropped)} rows, from {conversations[0][0]} on, are longer than "
        f"data.max_length={max_length} tokens; raise it",
    )
    ids = [token for example in kept for token in example.input_ids]
    labels = [label for example in kept for label in example.labels]
    return EncodedRows(
        input_ids=torch.tensor(ids, dtype=torch.int32),
        supervised=torch.tensor(labels) != IGNORE_INDEX,
        offsets=torch.tensor([0, *(len(example.input_ids) for example in kept)]).cumsum(0),
        dropped=torch.tensor(dropped, dtype=torch.int64),
    )


def fingerprint(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], max_length: int
) -> str:
    """Return a SHA-256 over all that decides the encoding, in hexadecimal."""
    digest = hashlib.sha256(f"{ENCODING_VERSION} {max_length}\n".encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(str(tokenizer.chat_template).encode())
    digest.update(json.dumps(tokenizer.special_tokens_map, sort_keys=True).encode())
    for name, messages in conversations:
        with _naming(name):
            digest.update(json.dumps(messages).encode())
    return digest.hexdigest()


def load_or_encode(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    max_length: int,
    cache_dir: Path,
) -> tuple[EncodedRows, str]:
    """Return the encoded rows and their fingerprint, from the cache where it knows them."""
    key = fingerprint(tokenizer, conversations, max_length)
    path = cache_dir / f"{key}.safetensors"
    if path.is_file():
        try:
            return EncodedRows(**load_file(path)), key
        except (SafetensorError, TypeError, OSError):
            pass  # a damaged cache costs an encoding, never a run
    encoded = encode_rows(tokenizer, conversations, max_length)
    _save_atomically(encoded, path)
    return encoded, key


def _save_atomically(encoded: EncodedRows, path: Path) -> None:
    """Two runs may fill one cache at once: each writes its own file, the last rename wins."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, staged = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    except OSError as error:
        raise InputError(
            f"the token cache {path.parent} cannot be written ({error.strerror}); set "
            "data.cache_dir to a folder that can"
        ) from error
    os.close(handle)
    try:
        save_file(vars(encoded), staged)
        Path(staged).replace(path)
    finally:
        Path(staged).unlink(missing_ok=True)


@contextmanager
def _naming(row: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{row}: {error}") from error
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{row}: the task cannot read it ({type(error).__name__}: {error})"
        ) from error
