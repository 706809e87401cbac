"""Generated word problems in the manner of GSM8K: endless, free, and answerable by a tiny model."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from lit_sft.errors import require
from lit_sft.tasks.base import ChatTask, Row
from lit_sft.types import Message, Split

NAMES = ("Ava", "Ben", "Cleo", "Dan", "Ella", "Finn", "Gia", "Hugo", "Iris", "Jack", "Kira", "Leo")
THINGS = ("apples", "books", "cards", "coins", "eggs", "marbles", "pens", "shells", "stamps")
FIRST_SEED = {"train": 0, "val": 10_000_000, "test": 20_000_000}


class Step(NamedTuple):
    """One sentence of a problem, and the line of arithmetic that answers it."""

    sentence: str
    expression: str
    result: int


class WordProblems(ChatTask):
    """Problems of one to four steps with calculator annotations and a final `#### answer`.

    Row `i` of a split is a function of the split and `i` alone, and the splits share no seed.

    Args:
        train_rows: Rows of the training split.
        test_rows: Rows of the test split.
        max_steps: The longest problem, in steps of arithmetic, 1 to 4.
    """

    def __init__(self, train_rows: int = 2000, test_rows: int = 200, max_steps: int = 3) -> None:
        require(train_rows > 0, f"task.train_rows must be positive, got {train_rows}")
        require(test_rows > 0, f"task.test_rows must be positive, got {test_rows}")
        require(1 <= max_steps <= 4, f"task.max_steps must be 1 to 4, got {max_steps}")
        self.train_rows, self.test_rows, self.max_steps = train_rows, test_rows, max_steps

    def rows(self, split: Split) -> Sequence[Row] | None:
        """Return generated rows with the columns `question` and `answer`; no `val` split."""
        if split == "val":
            return None
        count = self.train_rows if split == "train" else self.test_rows
        return [make_problem(FIRST_SEED[split] + i, self.max_steps) for i in range(count)]

    def messages(self, row: Row) -> list[Message]:
        """Return a user turn and an assistant turn."""
        return [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]


def make_problem(seed: int, max_steps: int) -> dict[str, str]:
    """Return the problem that a seed stands for, as `question` and `answer`."""
    rng = random.Random(seed)
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    total = rng.randint(2, 20)
    sentences, lines = [f"{name} has {total} {thing}."], []
    for _ in range(rng.randint(1, max_steps)):
        step = _next_step(rng, name, thing, total)
        sentences.append(step.sentence)
        lines.append(f"{step.expression} = <<{step.expression}={step.result}>>{step.result}")
        total = step.result
    question = " ".join([*sentences, f"How many {thing} does {name} have now?"])
    return {"question": question, "answer": "\n".join([*lines, f"#### {total}"])}


def _next_step(rng: random.Random, name: str, thing: str, total: int) -> Step:
    friend = rng.choice([other for other in NAMES if other != name])
    amount = rng.randint(2, 12)
    steps = [
        Step(f"{name} buys {amount} more {thing}.", f"{total}+{amount}", total + amount),
        Step(f"{friend} gives {name} {amount} {thing}.", f"{total}+{amount}", total + amount),
    ]
    if total > amount:
        left = total - amount
        steps.append(Step(f"{name} gives {amount} {thing} to {friend}.", f"{total}-{amount}", left))
        steps.append(Step(f"{name} loses {amount} {thing}.", f"{total}-{amount}", left))
    if total <= 30:
        steps.append(
            Step(f"A week later {name} has twice as many {thing}.", f"{total}*2", total * 2)
        )
    if total % 2 == 0:
        steps.append(
            Step(f"{name} sells half of the {thing}.", f"{total}/2", total // 2),
        )
    return rng.choice(steps)
