"""Rows of `train` that ask what another row asks: earlier in `train`, or where a run is measured.

Two rows ask the same if what their users say is equal once it is read without case, punctuation
and spacing. Numbers, signs of arithmetic and other symbols stay: "3 + 4?" is not "3 - 4?".
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple, TypeVar

from lit_sft.data.message_checks import check_messages
from lit_sft.data.options import DataOptions
from lit_sft.data.splits import Conversation, MissingSplit, read_conversations, read_split
from lit_sft.errors import InputError
from lit_sft.types import Message, Split

MARK = re.compile(
    r"(?<=\d)[.,:](?=\d)"  # 1,000 and 2.5 and 10:30 are numbers
    r"|-(?=\s?\d)"  # as in 7 - 3 and -3
    r"|([^\w\s]|_)"
)
ARITHMETIC = "*/%"
"""Punctuation to Unicode, but not to a word problem."""
MOST_COMPARED = 50_000
"""Rows of `train` that a test reads only to compare them, in two seconds."""

T = TypeVar("T")


class Repeat(NamedTuple):
    """A row of `train` that asks what another row asks."""

    position: int
    """Of the row, among those given."""
    row: str
    original: str
    """The row that it repeats: in another split, or the first of its kind in `train`."""
    is_exact: bool
    """Whether all turns are equal to the letter, the answers included."""


def find_repeats(
    train: Sequence[Conversation], held_out: Mapping[Split, Sequence[Conversation]]
) -> dict[Split, list[Repeat]]:
    """Return the rows of `train` that repeat another, by the split that the other is in.

    A row that cannot be read repeats nothing; encoding will say what is wrong with it.

    Args:
        train: Named conversations.
        held_out: Those of other splits.

    Returns:
        A key for `"train"` and each split of `held_out`; a row may stand under several.
    """
    keys = [_hash_question(messages) for _, messages in train]
    repeats: dict[Split, list[Repeat]] = {"train": _match(train, keys, {})}
    for split, conversations in held_out.items():
        known: dict[bytes, Conversation] = {}
        for name, messages in conversations:
            if key := _hash_question(messages):
                known.setdefault(key, (name, messages))
        repeats[split] = _match(train, keys, known, learn=False)
    return repeats


def read_held_out(
    data: DataOptions, chats: Mapping[Split, Sequence[Conversation]]
) -> dict[Split, Sequence[Conversation]]:
    """Return what `train` is compared with: all other splits at hand, and `val` in any case.

    `test` may be a download that a run does not need: it is read where `data.dedup` asks for it.

    Args:
        data: The task, and how many rows of it are held out.
        chats: The splits that are read.
    """
    held_out: dict[Split, Sequence[Conversation]] = {
        split: chats[split] for split in chats if split != "train"
    }
    wanted: dict[Split, bool] = {"val": data.val_rows != 0, "test": data.dedup}
    for split, is_wanted in wanted.items():
        if is_wanted and split not in chats:
            with suppress(MissingSplit):
                rows = read_split(data.task, split, data.val_rows)
                held_out[split] = read_conversations(data.task, rows)
    return held_out


def count_in_test(data: DataOptions) -> int | None:
    """Return how many rows are trained on whose question stands in `test`, too.

    Args:
        data: The task, and how many rows of it are held out.

    Returns:
        None where it is not known: a split is missing or cannot be read, or there are more rows
        than a test should wait for.
    """
    if data.dedup:
        return 0
    try:
        train = read_split(data.task, "train", data.val_rows)
        if data.streaming or len(train) > MOST_COMPARED:
            return None
        test = read_conversations(data.task, read_split(data.task, "test", data.val_rows))
        return len(find_repeats(read_conversations(data.task, train), {"test": test})["test"])
    except (InputError, OSError):
        return None


def drop_repeats(rows: Sequence[T], repeats: Mapping[Split, Sequence[Repeat]]) -> list[T]:
    """Return the rows that `find_repeats` does not list.

    Raises:
        InputError: If it lists all.
    """
    dropped = {repeat.position for found in repeats.values() for repeat in found}
    unique = [row for position, row in enumerate(rows) if position not in dropped]
    if rows and not unique:
        raise InputError("data.dedup leaves nothing to train on: every row is a duplicate")
    return unique


def format_repeats(repeats: Mapping[Split, Sequence[Repeat]], removed: bool) -> str:
    """Return one line that says how many rows of `train` repeat others, empty if none do."""
    places = [
        f"{len(found):,} {'earlier in train' if split == 'train' else f'in {split}'}"
        for split, found in repeats.items()
        if found
    ]
    if not places:
        return ""
    what = "removed from train, as their question stands" if removed else "of train's questions"
    hint = "" if removed else "; lit-sft inspect lists them, data.dedup=true removes their rows"
    return f"duplicates {what}: {', '.join(places)}{hint}"


def normalize_question(text: str) -> str:
    """Return `text` without what two spellings of a question differ in.

    Unicode's compatible forms are made one (NFKC), case is folded, and punctuation becomes a space,
    except in numbers, before them, and where it is arithmetic.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    marked = MARK.sub(lambda found: _replace_mark(found[0]) if found[1] else found[0], folded)
    return " ".join(marked.split()) or folded.strip()


@lru_cache(maxsize=4096)
def _replace_mark(mark: str) -> str:
    is_punctuation = unicodedata.category(mark).startswith("P") and mark not in ARITHMETIC
    return " " if is_punctuation else f" {mark} "


def _hash_question(messages: Sequence[Message]) -> bytes | None:
    """Return 16 bytes for what the users say, or None for a conversation that cannot be read."""
    try:
        check_messages(messages)
    except InputError:
        return None
    asked = [normalize_question(m["content"]) for m in messages if m["role"] == "user"]
    return hashlib.blake2b("\0".join(asked).encode(), digest_size=16).digest()


def _match(
    train: Sequence[Conversation],
    keys: Sequence[bytes | None],
    known: dict[bytes, Conversation],
    learn: bool = True,
) -> list[Repeat]:
    repeats = []
    for position, ((name, messages), key) in enumerate(zip(train, keys, strict=True)):
        if key is None:
            continue
        if original := known.get(key):
            if original[0] == name:  # a mixture draws a row more than once on purpose
                continue
            repeats.append(Repeat(position, name, original[0], messages == original[1]))
        elif learn:
            known[key] = (name, messages)
    return repeats
