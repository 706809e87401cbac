"""Any published chat data set: a file, a folder or a Hub id, read without code."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lit_sft.errors import InputError, require, suggest
from lit_sft.paths import is_local
from lit_sft.tasks.base import ChatTask, Row, read_text
from lit_sft.tasks.folders import ENDINGS, SPLIT_NAMES, find_splits
from lit_sft.tasks.formats import (
    COLUMNS,
    FormatName,
    add_system,
    choose_format,
    mark_all_but_last,
    read_conversation,
    recognise_rows,
    refuse_unread_columns,
)
from lit_sft.tasks.joined import Joined
from lit_sft.tasks.jsonl import JsonLines, read_json
from lit_sft.tasks.tables import load_hub, read_csv, read_parquet
from lit_sft.tasks.turns import is_missing
from lit_sft.types import Message, Split

LOOKED_AT = 64
"""Rows whose columns tell the format, the first that has them all."""
TURN_KEYS = {"role", "content", "weight"}
"""What is read of every turn; templates may know others."""


class ChatFile(ChatTask):
    """A chat data set in one of the formats that they are published in, recognised from its rows.

    Args:
        path: A JSON-lines, JSON, CSV, TSV or Parquet file, which is `train`; a folder of them,
            where the Hub's own rule tells the splits (a README's `configs`, `train.jsonl`,
            `data/test-00000-of-00001.parquet`); or a Hub id.
        subset: Of a data set that has several, such as `main`; in a folder, one that its README
            names, or the folder inside it.
        splits: What this data set calls `train`, `val` and `test`, where it is not the usual, such
            as `{train: train_sft, test: test_sft}`; in a folder, also the name or the path of a
            file, or the path of a folder of them.
        format: `messages` (OpenAI), `sharegpt` (`conversations` of `from` and `value`),
            `conversation` (of `input` and `output`), `alpaca` (`instruction`, `input`, `output`),
            `dolly` (`instruction`, `context`, `response`), or one named after its two columns, such
            as `query_response`; with a column `system`, and but for turns, `history`. `auto` tells
            from the columns.
        columns: For any other data set, its names of `prompt` and `answer`, or of `messages`. With
            either or alone, `system` names a column of system prompts.
        system_prompt: Opens every conversation that has no system turn of its own.
        train_on: `all` assistant turns, or the `last` alone. What a turn says of itself goes first:
            `weight`, `train`, `loss` or `loss_weight`, each 0, 1, false or true.
    """

    def __init__(
        self,
        path: str,
        subset: str | None = None,
        splits: dict[str, str] | None = None,
        format: FormatName = "auto",  # noqa: A002 (the option's name)
        columns: dict[str, str] | None = None,
        system_prompt: str | None = None,
        train_on: Literal["all", "last"] = "all",
    ) -> None:
        self.path, self.subset, self.splits = path, subset, splits or {}
        for split in self.splits:
            hint = suggest(split, SPLIT_NAMES)
            known = split in SPLIT_NAMES
            require(known, f"task.splits: {split!r} is not train, val or test.{hint}")
        self.format = choose_format(format, columns or {})
        self.system_column = (columns or {}).get("system")
        self.system_prompt, self.train_on = system_prompt, train_on
        self._unread: Counter[str] = Counter()
        self._doubts: dict[str, str] = {}

    def rows(self, split: Split) -> Sequence[Row] | None:
        """Return the rows of a split; those of JSON lines, Parquet and the Hub stay on the disk."""
        # `data/chats.jsonl` has two parts, as a Hub id has.
        local = is_local(self.path) or self.path.endswith(ENDINGS)
        found: Mapping[str, Any] = self._find_files() if local else load_hub(self.path, self.subset)
        name = self._choose_split(split, found)
        if name is None:
            return None
        require(
            name not in self._doubts,
            f"{self.path}: the split {name!r} is not certain: {self._doubts.get(name)}; name what "
            f"to read, a split, a file or a folder, with the task's `splits: {{{split}: …}}`",
        )
        rows: Any = read_files(found[name]) if local else found[name]
        require(len(rows) > 0, f"{self.path}: the split {name!r} holds no rows")
        self._look_at(rows)
        return rows

    def messages(self, row: Row) -> list[Message]:
        """Return the turns of a row; a system prompt comes first."""
        layout = self.format or recognise_rows([row])
        if layout.name in COLUMNS:  # else the task's own columns say what to read
            refuse_unread_columns(row, layout)
        messages = read_conversation(row, layout)
        if self.system_column and not is_missing(row.get(self.system_column)):
            system = read_text(row, self.system_column)
            messages = add_system(messages, system, self.system_column)
        if self.system_prompt and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        read = {*layout.reads(row), self.system_column}
        self._unread.update(x for x in row if x not in read and not is_missing(row[x]))
        self._unread.update(f"{x} of turns" for turn in messages for x in turn.keys() - TURN_KEYS)
        return mark_all_but_last(messages) if self.train_on == "last" else messages

    def describe(self) -> str:
        """Return which format was recognised, and how often a column held what was not read."""
        if self.format is None:
            return ""
        counts = ", ".join(f"{name} ({rows:,})" for name, rows in sorted(self._unread.items()))
        unread = f"; not read: {counts}" if counts else ""
        return f"{self.path}: read as {self.format.name} ({', '.join(self.format.columns)}){unread}"

    def _look_at(self, rows: Sequence[Row]) -> None:
        """Decide how rows read: as the first that has a format, which all others must have."""
        self.format = self.format or recognise_rows(islice(rows, LOOKED_AT))
        columns = {column for row in islice(rows, LOOKED_AT) for column in row}
        needed = [*self.format.columns, *([self.system_column] if self.system_column else [])]
        missing = [column for column in needed if column not in columns]
        is_prompt = self.format.columns[0] not in missing and missing == [self.format.columns[-1]]
        require(
            not missing or (is_prompt and self.format.name in COLUMNS),
            f"{self.path}: there is no column {', '.join(map(repr, missing))}, which the task's "
            f"format or columns name; there are {', '.join(rows[0])}",
        )

    def _find_files(self) -> dict[str, list[Path]]:
        path = Path(self.path).expanduser()
        require(
            path.exists(), f"{path}: there is no such file or folder (a Hub id reads owner/name)"
        )
        if path.is_file():
            endings = ", ".join(ENDINGS)
            require(path.suffix in ENDINGS, f"{path}: expected one of {endings}")
            return {"train": [path]}
        files, self._doubts = find_splits(path, self.subset, list(self.splits.values()))
        return files

    def _choose_split(self, split: Split, found: Collection[str]) -> str | None:
        wanted = (self.splits[split],) if split in self.splits else SPLIT_NAMES[split]
        name = next((name for name in wanted if name in found), None)
        if name is None and (split != "val" or split in self.splits):
            if Path(self.path).expanduser().is_file():
                hint = f"a file is all train; a folder can hold train.jsonl and {split}.jsonl"
            else:
                hint = f"name one with the task's `splits: {{{split}: …}}`"
            raise InputError(
                f"{self.path}: no split is called {' or '.join(map(repr, wanted))}, only "
                f"{', '.join(found)}; {hint}"
            ) from FileNotFoundError(split)
        return name


def read_files(paths: Sequence[Path]) -> Sequence[Row]:
    """Return the rows of data files of one kind, one after the other.

    Raises:
        InputError: If they are of several kinds, or one cannot be read.
    """
    endings = sorted({path.suffix for path in paths})
    require(
        len(endings) == 1,
        f"{paths[0].parent}: one split has files of several kinds ({', '.join(endings)}); keep one",
    )
    if endings == [".parquet"]:
        rows: Sequence[Row] = read_parquet(paths)
        return rows
    read: Any = {".json": read_json, ".csv": read_csv, ".tsv": read_csv}.get(endings[0], JsonLines)
    return Joined([read(path) for path in paths])
