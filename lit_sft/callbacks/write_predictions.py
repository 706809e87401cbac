"""Keep what `lit-sft predict` generates."""

import json
from collections.abc import Sequence

import lightning.pytorch as pl

from lit_sft.data.prompts import decode_answer
from lit_sft.data.protocol import run_data
from lit_sft.evaluation.generate import Generation
from lit_sft.files import sync
from lit_sft.model.module import SFTModule
from lit_sft.run.folder import RunFolder, is_trial
from lit_sft.run.records import append_rows
from lit_sft.types import Prompt


class WritePredictions(pl.Callback):
    """Write `predictions.jsonl` under the run's folder: a line a row of the test split.

    Until the last row is answered, the file is named `predictions.jsonl.part`: what `predict` came
    to before it was killed can be used, and is not taken for the whole.
    """

    def on_predict_start(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Start an empty file; a trial run (`trainer.fast_dev_run`) writes none."""
        if not is_trial(trainer):
            folder = RunFolder.of(trainer)
            folder.root.mkdir(parents=True, exist_ok=True)
            folder.partial_predictions.write_text("")

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: SFTModule,
        outputs: Sequence[Generation],
        batch: Sequence[Prompt],
        *args: object,
    ) -> None:
        """Add the lines of a batch."""
        if is_trial(trainer):
            return
        tokenizer = run_data(trainer).tokenizer
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
        append_rows(RunFolder.of(trainer).partial_predictions, "".join(texts))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Give the file its name, and say where it is."""
        if not is_trial(trainer):
            folder = RunFolder.of(trainer)
            sync(folder.partial_predictions)
            folder.partial_predictions.replace(folder.predictions)
            print(f"wrote {folder.predictions}")
