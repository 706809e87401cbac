"""Keep what `lit-sft predict` generates."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lit_sft.data.prompts import decode_answer
from lit_sft.evaluation.generate import Generation
from lit_sft.types import Prompt

PREDICTIONS = "predictions.jsonl"
"""Under the run's folder."""


class WritePredictions(pl.Callback):
    """Write `predictions.jsonl` under the run's folder: a line a row of the test split."""

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start an empty file."""
        self._path = Path(trainer.default_root_dir) / PREDICTIONS
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("")

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Sequence[Generation],
        batch: Sequence[Prompt],
        *args: Any,
    ) -> None:
        """Add the lines of a batch."""
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        with self._path.open("a", encoding="utf-8") as file:
            for prompt, generation in zip(batch, outputs, strict=True):
                line = {
                    "row": prompt.row,
                    "messages": prompt.messages,
                    "output": decode_answer(tokenizer, generation.token_ids),
                    "finished": generation.finished,
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def on_predict_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say where they are."""
        print(f"wrote {self._path}")
