"""Any published chat data set: a file, a folder or a Hub id, read without code."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from lit_sft.errors import InputError, require, suggest
from lit_sft.paths import is_local
from lit_sft.tasks.arrow_rows import SAVED, ArrowRows, load_hub, load_saved, read_parquet
from lit_sft.tasks.base import HOW_TO_GRADE, ChatTask, Row, read_text
from lit_sft.tasks.csv_rows import read_csv
from lit_sft.tasks.data_files import (
    ENDINGS,
    SPLIT_NAMES,
    find_files,
    find_splits,
    has_glob,
    require_files,
)
from lit_sft.tasks.formats import (
    COLUMNS,
    Format,
    FormatName,
    choose_format,
    read_conversation,
    recognise_rows,
    refuse_unread_columns,
)
from lit_sft.tasks.graders import choose_grader, spell_grader
from lit_sft.tasks.json_rows import JsonLines, read_json
from lit_sft.tasks.plain import read_ending
from lit_sft.tasks.row_sequences import Joined, SlicedRows, is_sliced, read_slices, require_apart
from lit_sft.tasks.tool_turns import add_tools, gather_tools
from lit_sft.tasks.turns import add_system, is_missing, mark_all_but_last
from lit_sft.types import MEANING, Grade, Message, Split

Found = Mapping[str, list[Path] | ArrowRows]
"""What there is of each split: the files that hold its rows, or the rows."""
LOOKED_AT = 64
"""Rows whose columns tell the format, the first that has them all."""
TURN_KEYS = {"role", "content", "weight"}
"""What is read of every turn; whether a template writes what else has a meaning is asked later."""


class ChatFile(ChatTask):
    """A chat data set in one of the formats that they are published in, recognised from its rows.

    Args:
        path: A JSON-lines, JSON, CSV, TSV or Parquet file, packed by gzip or zstd or not, which is
            `train`, as are a list of files and a glob; a folder of them, where the Hub's own rule
            tells the splits (a README's `configs`, `train.jsonl`,
            `data/test-00000-of-00001.parquet`), or one of `save_to_disk`; or a Hub id.
        subset: Of a data set that has several, such as `main`; in a folder, one that its README
            names, or the folder inside it.
        splits: What this data set calls `train`, `val` and `test`, where it is not the usual, such
            as `{train: train_sft, test: test_sft}`, or a part of it, such as `train[:1000]`; in a
            folder, also the name or the path of a file, or the path of a folder of them.
        format: `messages` (OpenAI), `sharegpt` (`conversations` of `from` and `value`),
            `conversation` (of `input` and `output`), `alpaca` (`instruction`, `input`, `output`),
            `dolly` (`instruction`, `context`, `response`), or one named after its two columns, such
            as `query_response`; with a column `system`, and but for turns, `history`. `auto` tells
            from the columns.
        columns: For any other data set, its names of `prompt` and `answer`, or of `messages`. With
            either or alone, `system` names a column of system prompts, and `tools` one of tools.
        system_prompt: Opens every conversation that has no system turn of its own.
        train_on: `all` assistant turns, or the `last` alone. What a turn says of itself goes first:
            `weight`, `train`, `loss` or `loss_weight`, each 0, 1, false or true.
        grader: How an answer is compared with that of its row, for `GenerationEval`: `exact`,
            `number` (the final one), `choice` (its letter), `json` (fields equal), `contains` (the
            row's answer in the model's), `f1` (of words), or `regex: PATTERN` (its first match, or
            the first group of it, is the same in both), see `lit_sft.tasks.graders`.
    """

    def __init__(
        self,
        path: str | list[str],
        subset: str | None = None,
        splits: dict[str, str] | None = None,
        format: FormatName = "auto",  # noqa: A002 (the option's name)
        columns: dict[str, str] | None = None,
        system_prompt: str | None = None,
        train_on: Literal["all", "last"] = "all",
        grader: str | dict[str, str] | None = None,
    ) -> None:
        self.path = path if isinstance(path, str) else ", ".join(path)
        self._listed = None if isinstance(path, str) else path
        self.subset, self.splits = subset, splits or {}
        for split in self.splits:
            hint = suggest(split, SPLIT_NAMES)
            known = split in SPLIT_NAMES
            require(known, f"task.splits: {split!r} is not train, val or test.{hint}")
        self.format = choose_format(format, columns or {})
        self.system_column = (columns or {}).get("system")
        self.tools_column = (columns or {}).get("tools")
        self.system_prompt, self.train_on = system_prompt, train_on
        self.grader = spell_grader(grader) if grader is not None else None
        self._grade = choose_grader(self.grader) if self.grader is not None else None
        self._unread: Counter[str] = Counter()
        self._doubts: dict[str, str] = {}

    def rows(self, split: Split) -> Sequence[Row] | None:
        """Return the rows of a split; those of JSON lines, Parquet and the Hub stay on the disk."""
        found = self._find()
        name = self._choose_split(split, found)
        if name is None:
            return None
        if any(is_sliced(wanted) for wanted in self.splits.values()):
            rows = self._slice(split, name, found)
        else:
            rows = self._read(split, name, found)
        require(len(rows) > 0, f"{self.path}: the split {name!r} holds no rows")
        self._look_at(rows)
        return rows

    def messages(self, row: Row) -> list[Message]:
        """Return the turns of a row; a system prompt comes first."""
        layout = self._layout_of(row)
        messages = read_conversation(row, layout)
        if self.system_column and not is_missing(row.get(self.system_column)):
            system = read_text(row, self.system_column)
            messages = add_system(messages, system, self.system_column)
        if self.tools_column and not is_missing(row.get(self.tools_column)):
            messages = add_tools(messages, row[self.tools_column], self.tools_column)
        if self.system_prompt and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        messages = gather_tools(messages)
        read = {*layout.reads(row), self.system_column, self.tools_column}
        self._unread.update(x for x in row if x not in read and not is_missing(row[x]))
        keys = [key for turn in messages for key in turn.keys() - TURN_KEYS]
        self._unread.update(f"{key} of turns" for key in keys if not MEANING.search(key))
        return mark_all_but_last(messages) if self.train_on == "last" else messages

    def grade(self, row: Row, text: str) -> Grade:
        """Return how a text compares with the last turn of a row, by the `grader`.

        Raises:
            InputError: If there is no grader, or the row has no answer that it could compare.
        """
        require(self._grade is not None, f"{self.path}: there is no grader; {HOW_TO_GRADE}")
        last = read_conversation(row, self._layout_of(row))[-1]
        require(last["role"] == "assistant", "there is no answer to grade by")
        return self._grade(last["content"] or "", text) if self._grade else None

    def grader_name(self) -> str | None:
        """Return the option, or the name of a class of one's own with a `grade` of its own."""
        return self.grader if type(self).grade is ChatFile.grade else type(self).__name__

    def describe(self) -> str:
        """Return which format was recognised, and how often a column held what was not read."""
        if self.format is None:
            return ""
        counts = ", ".join(f"{name} ({rows:,})" for name, rows in sorted(self._unread.items()))
        unread = f"; not read: {counts}" if counts else ""
        return f"{self.path}: read as {self.format.name} ({', '.join(self.format.columns)}){unread}"

    def _layout_of(self, row: Row) -> Format:
        layout = self.format or recognise_rows([row])
        if layout.name in COLUMNS:  # else the task's own columns say what to read
            refuse_unread_columns(row, layout)
        return layout

    def _look_at(self, rows: Sequence[Row]) -> None:
        """Decide how rows read: as the first that has a format, which all others must have."""
        try:
            self.format = self.format or recognise_rows(islice(rows, LOOKED_AT))
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error
        columns = {column for row in islice(rows, LOOKED_AT) for column in row}
        needed = [*self.format.columns, *filter(None, [self.system_column, self.tools_column])]
        missing = [column for column in needed if column not in columns]
        is_prompt = self.format.columns[0] not in missing and missing == [self.format.columns[-1]]
        require(
            not missing or (is_prompt and self.format.name in COLUMNS),
            f"{self.path}: there is no column {', '.join(map(repr, missing))}, which the task's "
            f"format or columns name; there are {', '.join(rows[0])}",
        )

    def _find(self) -> Found:
        if self._listed is not None:
            return {"train": require_files(self._listed)}
        path = Path(self.path).expanduser()
        # `data/chats.jsonl` has two parts, as a Hub id has.
        if not is_local(self.path) and read_ending(path) not in ENDINGS:
            return load_hub(self.path, self.subset)
        if has_glob(self.path) and not path.exists():
            return {"train": find_files(path)}
        require(
            path.exists(), f"{path}: there is no such file or folder (a Hub id reads owner/name)"
        )
        if path.is_file():
            return {"train": require_files([self.path])}
        if any((path / name).is_file() for name in SAVED):
            return load_saved(path)
        files, self._doubts = find_splits(path, self.subset, list(self.splits.values()))
        return files

    def _read(self, split: Split, name: str, found: Found) -> Sequence[Row]:
        require(
            name not in self._doubts,
            f"{self.path}: the split {name!r} is not certain: {self._doubts.get(name)}; name what "
            f"to read, a split, a file or a folder, with the task's `splits: {{{split}: …}}`",
        )
        rows = found[name]
        return read_files(rows) if isinstance(rows, list) else rows

    def _slice(self, split: Split, name: str, found: Found) -> Sequence[Row]:
        """Return the part of a split that is asked for, which no other may share with `train`."""
        whole = {x: self._read(split, x, found) for x in found if x not in self._doubts}
        lengths = {x: len(rows) for x, rows in whole.items()}
        asked: list[Split] = [x for x in ("train", "val", "test") if x in {*self.splits, "train"}]
        names = {x: self._choose_split(x, found) for x in asked}
        slices = {x: read_slices(wanted, lengths) for x, wanted in names.items() if wanted}
        require_apart(slices)
        parts = slices.get(split) or read_slices(name, lengths)
        return Joined([SlicedRows(whole[x.split], x.start, x.stop) for x in parts])

    def _choose_split(self, split: Split, found: Collection[str]) -> str | None:
        wanted = (self.splits[split],) if split in self.splits else SPLIT_NAMES[split]
        name = next((name for name in wanted if name in found or is_sliced(name)), None)
        if name is None and (split != "val" or split in self.splits):
            if self._listed or Path(self.path).expanduser().is_file():
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
    endings = sorted({read_ending(path) for path in paths})
    require(
        len(endings) == 1,
        f"{paths[0].parent}: one split has files of several kinds ({', '.join(endings)}); keep one",
    )
    if endings == [".parquet"]:
        return read_parquet(paths)
    readers: Mapping[str, Callable[[Path], Sequence[Row]]] = {
        ".json": read_json, ".csv": read_csv, ".tsv": read_csv
    }  # fmt: skip
    read = readers.get(endings[0], JsonLines)
    names = [path.name for path in paths] if len(paths) > 1 else []
    return Joined([read(path) for path in paths], names)
