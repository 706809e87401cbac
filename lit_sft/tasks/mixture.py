"""Several data sets as one, each with its share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lit_sft.errors import require
from lit_sft.tasks.base import HOW_TO_GRADE, ChatTask, NamedRow, Row, name_graders
from lit_sft.tasks.plain import remove_endings
from lit_sft.tasks.row_sequences import Joined, hash_contents, join_hashes
from lit_sft.types import Grade, Message, Split

StoppingStrategy = Literal["first_exhausted", "all_exhausted"]


class MixedRows(Sequence[NamedRow]):
    """Rows of several sources, named after theirs, each read when it is asked for.

    Args:
        parts: The rows of each source, by its name.
        picks: int64 `[rows]`, which of them, counted through all parts.
    """

    def __init__(self, parts: Mapping[str, Sequence[NamedRow]], picks: np.ndarray) -> None:
        self.names, self.joined, self.picks = list(parts), Joined(list(parts.values())), picks

    def __len__(self) -> int:
        return len(self.picks)

    def __getitem__(self, index: Any) -> Any:
        part, number = self.joined.locate(int(self.picks[index]))
        name, row = self.joined.parts[part][number]
        return f"{self.names[part]} {name}", {"source": self.names[part], "row": row}

    def hash_contents(self) -> str | None:
        """Return a hash of all rows of the sources, and of which are picked, in order."""
        picks = self.picks.astype("<i8", copy=False).tobytes()
        return join_hashes(map(hash_contents, self.joined.parts), picks)

    def sources(self) -> list[str]:
        """Return the name of the source of each row; none is read."""
        return [self.names[self.joined.locate(int(pick))[0]] for pick in self.picks]


class Mixture(ChatTask):
    """Rows of several tasks in one fixed, shuffled list.

    The list is a function of the tasks, their weights and the seed, so a mixture is resumed as any
    other task is. Weights decide over `train`. The tasks have equal parts in `data.val_rows`, each
    held out of its own `train` where it has no `val`; `test` is that of the tasks that have one.

    Args:
        tasks: By name; in a list, each is named after its `path`, or else its class.
        weights: The share of each task in the rows of `train`, in order and in any unit; without,
            every row of every task is taken once.
        stopping_strategy: How many rows that gives, as in `datasets.interleave_datasets`. With
            `first_exhausted`, as many as the task that is the scarcest for its weight has, and no
            row twice; with `all_exhausted`, every row of every task, for which the rows of the
            others are repeated.
        seed: Decides which rows are taken, and their order.
    """

    def __init__(
        self,
        tasks: dict[str, ChatTask] | list[ChatTask],
        weights: list[float] | None = None,
        stopping_strategy: StoppingStrategy = "first_exhausted",
        seed: int = 0,
    ) -> None:
        self.tasks = tasks if isinstance(tasks, dict) else name_tasks(tasks)
        require(bool(self.tasks), "Mixture.tasks names no task")
        nested = [name for name, task in self.tasks.items() if isinstance(task, Mixture)]
        require(not nested, f"Mixture.tasks: {nested} are mixtures; name what they mix instead")
        require(
            weights is None or len(weights) == len(self.tasks),
            f"Mixture.weights: {weights} has to have one weight for each of the "
            f"{len(self.tasks)} tasks ({', '.join(self.tasks)})",
        )
        require(
            all(weight > 0 for weight in weights or []),
            f"Mixture.weights must be positive, got {weights}; take out the task instead",
        )
        self.weights, self.stopping_strategy, self.seed = weights, stopping_strategy, seed

    def rows(self, split: Split) -> Sequence[Row] | None:
        """Return all rows, each as `source`, a name, and `row`, what the task of that name has.

        `lit_sft.data.splits.read_split` takes from the tasks what their weights ask for, as rows
        have to be held out before any is repeated.
        """
        parts = {name: task.rows(split) or () for name, task in self.tasks.items()}
        rows = [{"source": name, "row": row} for name, part in parts.items() for row in part]
        return rows or None

    def draw(self, split: Split, sizes: Sequence[int]) -> np.ndarray:
        """Return int64 `[rows]`, what a split holds, counted through all tasks, in random order.

        Args:
            split: In `train`, weights decide; elsewhere every row is there once.
            sizes: Rows of each task.
        """
        counts = sizes
        if split == "train" and self.weights:
            counts = count_rows(sizes, self.weights, self.stopping_strategy)
        return draw_rows(sizes, counts, self.seed)

    def mixed_tasks(self) -> Mapping[str, ChatTask]:
        """Return the tasks, by name."""
        return self.tasks

    def mix(self, split: Split, parts: Mapping[str, Sequence[NamedRow]]) -> MixedRows:
        """Return what a split holds, drawn from the rows of the tasks that have the split."""
        return MixedRows(parts, self.draw(split, [len(part) for part in parts.values()]))

    def list_sources(self, rows: Sequence[NamedRow]) -> list[str]:
        """Return the name of the task of each row; those that `mix` returns need not be read."""
        if isinstance(rows, MixedRows):
            return rows.sources()
        return [self.source_of(row) for _, row in rows]

    def source_of(self, row: Row) -> str:
        """Return the name of the task that a row is from."""
        name: str = row["source"]
        return name

    def messages(self, row: Row) -> list[Message]:
        """Return what the row's own task reads."""
        return self.tasks[self.source_of(row)].messages(row["row"])

    def grade(self, row: Row, text: str) -> Grade:
        """Return the grade by the row's own task.

        Raises:
            InputError: If that does not grade.
        """
        name = self.source_of(row)
        require(
            self.tasks[name].grader_name() is not None,
            f"Mixture: {name} does not grade answers; {HOW_TO_GRADE}",
        )
        return self.tasks[name].grade(row["row"], text)

    def grader_name(self) -> str | None:
        """Return the names of all tasks' graders, or None unless each has one."""
        names = [name for name in name_graders(self).values() if name is not None]
        return ", ".join(dict.fromkeys(names)) if len(names) == len(self.tasks) else None

    def describe(self) -> str:
        """Return what the tasks say, a line each."""
        return "\n".join(filter(None, (task.describe() for task in self.tasks.values())))


def name_tasks(tasks: Sequence[ChatTask]) -> dict[str, ChatTask]:
    """Return tasks under the last part of their `path`, or else the name of their class.

    Raises:
        InputError: If two have one name.
    """
    paths = [Path(getattr(task, "path", "")) for task in tasks]
    names = [remove_endings(x) or type(y).__name__ for x, y in zip(paths, tasks, strict=True)]
    require(
        len(set(names)) == len(names),
        f"Mixture.tasks: the names {', '.join(names)} are not distinct; give the tasks as a "
        "dictionary, with names of your own as keys",
    )
    return dict(zip(names, tasks, strict=True))


def count_rows(
    sizes: Sequence[int], weights: Sequence[float], stopping_strategy: StoppingStrategy
) -> list[int]:
    """Return how many rows of each source a mixture has, at least one.

    Args:
        sizes: Rows of each source.
        weights: Its share, in any unit.
        stopping_strategy: As `Mixture` has it.
    """
    fits = [size / weight for size, weight in zip(sizes, weights, strict=True)]
    total = min(fits) if stopping_strategy == "first_exhausted" else max(fits)
    return [max(1, round(total * weight)) for weight in weights]


def draw_rows(sizes: Sequence[int], counts: Sequence[int], seed: int) -> np.ndarray:
    """Return int64 `[sum(counts)]`, rows counted through all sources, in random order.

    A source gives all its rows as often as its count holds them, and a random part of them once
    more.
    """
    rng = np.random.default_rng(seed)
    picks, first = [], 0
    for size, count in zip(sizes, counts, strict=True):
        rounds, rest = divmod(count, size)
        picks += [np.arange(first, first + size)] * rounds
        picks.append(first + rng.permutation(size)[:rest])
        first += size
    return rng.permutation(np.concatenate(picks))
