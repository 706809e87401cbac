"""Keep what `lit-sft predict` generates."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lit_sft.data.prompts import decode_answer
from lit_sft.evaluation.generate import Generation
from lit_sft.files import sync
from lit_sft.run.records import append_rows
from lit_sft.types import Prompt

PREDICTIONS = "predictions.jsonl"
"""Under the run's folder."""


PART = ".part"
"""Ends the name of the file as long as it is not complete."""


class WritePredictions(pl.Callback):
    """Write `predictions.jsonl` under the run's folder: a line a row of the test split.

    Until the last row is answered, the file is named `predictions.jsonl.part`: what `predict` came
    to before it was killed can be used, and is not taken for the whole.
    """

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start an empty file; a trial run (`trainer.fast_dev_run`) writes none."""
        self._path = Path(trainer.default_root_dir) / PREDICTIONS
        self._part = self._path.with_name(PREDICTIONS + PART)
        self._is_trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        if not self._is_trial:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._part.write_text("")

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Sequence[Generation],
        batch: Sequence[Prompt],
        *args: Any,
    ) -> None:
        """Add the lines of a batch."""
        if self._is_trial:
            return
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        lines = [
            {
                "row": prompt.row,
                "messages": prompt.messages,
                "output": decode_answer(tokenizer, generation.token_ids),
                "finished": generation.finished,
            }
            for prompt, generation in zip(batch, outputs, strict=True)
        ]
        texts = (json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        append_rows(self._part, "".join(texts))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Give the file its name, and say where it is."""
        if not self._is_trial:
            sync(self._part)
            self._part.replace(self._path)
            print(f"wrote {self._path}")
