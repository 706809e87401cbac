"""Generated word problems in the manner of GSM8K: endless, free, and answerable by a tiny model."""

import random
import zlib
from collections.abc import Callable, Sequence

from lit_sft.errors import require
from lit_sft.tasks.base import ChatTask, Row
from lit_sft.tasks.gsm8k import grade_final_answer
from lit_sft.toy import stories_of_numbers as numbers
from lit_sft.toy import stories_of_units as units
from lit_sft.toy.story import Story
from lit_sft.types import Message, Split

STORIES: tuple[Callable[[Story], None], ...] = (
    numbers.tell_changes,
    numbers.tell_comparison,
    numbers.tell_inverse,
    units.tell_shopping,
    units.tell_wages,
    units.tell_reading,
    units.tell_travel,
    numbers.tell_sharing,
    units.tell_sale,
    numbers.tell_boxes,
    numbers.tell_percent,
    units.tell_duration,
    numbers.tell_ages,
    units.tell_saving,
    numbers.tell_garden,
    numbers.tell_average,
    units.tell_machine,
)
"""In an order that decides which problem has which number."""
SHARES = {"pretrain": range(0, 8), "train": range(8, 12), "val": (12, 13), "test": (14, 15)}
"""Which of 16 classes of questions belong to which split: no question is in two of them."""


class WordProblems(ChatTask):
    """Problems of one to four steps with calculator annotations and a final `#### answer`.

    Row `i` of a split is a function of the split and `i` alone. The checksum of a question says
    which split it belongs to, so no split holds a question of another, nor one that the embedded
    base has seen in pre-training.

    Args:
        train_rows: Rows of the training split.
        val_rows: Rows of the validation split.
        test_rows: Rows of the test split.
        max_steps: The longest problem, in steps of arithmetic, 1 to 4.
    """

    def __init__(
        self,
        train_rows: int = 4000,
        val_rows: int = 256,
        test_rows: int = 512,
        max_steps: int = 4,
    ) -> None:
        require(train_rows > 0, f"task.train_rows must be positive, got {train_rows}")
        require(val_rows > 0, f"task.val_rows must be positive, got {val_rows}")
        require(test_rows > 0, f"task.test_rows must be positive, got {test_rows}")
        require(1 <= max_steps <= 4, f"task.max_steps must be 1 to 4, got {max_steps}")
        self.counts: dict[Split, int] = {"train": train_rows, "val": val_rows, "test": test_rows}
        self.max_steps = max_steps

    def rows(self, split: Split) -> Sequence[Row] | None:
        """Return generated rows with the columns `question` and `answer`."""
        return [make_problem(split, i, self.max_steps) for i in range(self.counts[split])]

    def messages(self, row: Row) -> list[Message]:
        """Return a user turn and an assistant turn."""
        return [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]

    def grade(self, row: Row, text: str) -> bool | None:
        """Return whether the first `#### number` of `text` is the row's; None if there is none."""
        return grade_final_answer(row["answer"], text)


def make_problem(split: str, index: int, max_steps: int = 4) -> dict[str, str]:
    """Return row `index` of a split as `question` and `answer`.

    Args:
        split: A key of `SHARES`.
        index: Any number; there is no last row.
        max_steps: The longest problem, in steps of arithmetic.
    """
    rng = random.Random(f"{split} {index}")
    while True:
        story = Story(rng)
        rng.choice(STORIES)(story)
        question = " ".join(story.sentences)
        share = zlib.crc32(question.encode()) % 16
        if story.sound and len(story.lines) <= max_steps and share in SHARES[split]:
            return {
                "question": question,
                "answer": "\n".join([*story.lines, f"#### {story.result}"]),
            }
