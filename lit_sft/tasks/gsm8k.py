"""GSM8K: grade-school word problems with worked solutions (Cobbe et al., 2021)."""

from collections.abc import Sequence
from pathlib import Path

from lit_sft.evaluation.grading import grade_final_answer
from lit_sft.paths import is_local
from lit_sft.tasks.base import ChatTask, Row, read_text
from lit_sft.tasks.jsonl import JsonLines
from lit_sft.tasks.tables import load_hub
from lit_sft.types import Message, Split


class GSM8K(ChatTask):
    """The question as the user's turn, the worked solution as the assistant's.

    Args:
        path: The Hub id, or a folder with `train.jsonl` and `test.jsonl`.
    """

    def __init__(self, path: str = "openai/gsm8k") -> None:
        self.path = path

    def rows(self, split: Split) -> Sequence[Row] | None:
        """Return `train` (7,473 rows) or `test` (1,319 rows); GSM8K has no validation split."""
        if split == "val":
            return None
        if is_local(self.path):
            return JsonLines(Path(self.path).expanduser() / f"{split}.jsonl")
        rows: Sequence[Row] = load_hub(self.path, "main")[split]
        return rows

    def messages(self, row: Row) -> list[Message]:
        """Return a user turn and an assistant turn, without a system turn."""
        return [
            {"role": "user", "content": read_text(row, "question")},
            {"role": "assistant", "content": read_text(row, "answer")},
        ]

    def grade(self, row: Row, text: str) -> bool | None:
        """Return whether the first `#### number` of `text` is the row's; None if there is none."""
        return grade_final_answer(read_text(row, "answer"), text)
