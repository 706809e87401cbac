"""Keep what `lit-sft predict` generates."""

import json
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

from lit_sft.data.prompts import decode_answer
from lit_sft.data.protocol import run_data
from lit_sft.errors import InputError
from lit_sft.evaluation.generate import Generation
from lit_sft.evaluation.verdicts import name_verdict
from lit_sft.files import sync
from lit_sft.model.distributed import gather_over_ranks
from lit_sft.model.module import SFTModule
from lit_sft.run.folder import RunFolder, is_trial
from lit_sft.run.predictions import split_prompt
from lit_sft.run.records import append_rows
from lit_sft.tasks.base import ChatTask, name_graders
from lit_sft.types import Prompt


class WritePredictions(pl.Callback):
    """Write `predictions.jsonl` under the run's folder: a line a prompt, see `describe_prediction`.

    Until the last prompt is answered, the file is named `predictions.jsonl.part`: what `predict`
    came to before it was killed can be used, and is not taken for the whole. A file of before is
    kept under another name. Each rank grades what it has answered; the first one writes all lines,
    in the order of the prompts.
    """

    @rank_zero_only
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
        data = run_data(trainer)
        task = getattr(data, "task", None)
        mine = [
            describe_prediction(
                prompt, decode_answer(data.tokenizer, given.token_ids), given.finished, task
            )
            for prompt, given in zip(batch, outputs, strict=True)
        ]
        texts = [(line["row"], json.dumps(line, ensure_ascii=False) + "\n") for line in mine]
        everyone = sorted(gather_over_ranks(texts))
        if trainer.is_global_zero:
            lines = "".join(line for _, line in everyone)
            append_rows(RunFolder.of(trainer).partial_predictions, lines)

    @rank_zero_only
    def on_predict_end(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Give the file its name, and say where it is."""
        if is_trial(trainer):
            return
        folder = RunFolder.of(trainer)
        sync(folder.partial_predictions)
        if folder.predictions.exists():
            kept = _find_free(folder.predictions)
            folder.predictions.rename(kept)
            print(f"kept the predictions of before as {kept}")
        folder.partial_predictions.replace(folder.predictions)
        print(f"wrote {folder.predictions}")


def describe_prediction(
    prompt: Prompt, answer: str, finished: bool, task: ChatTask | None
) -> Mapping[str, Any]:
    """Return a line of `predictions.jsonl`, as plain values.

    Args:
        prompt: What was asked; its last message is the reference where the assistant says it.
        answer: What the model said.
        finished: Whether it stopped by itself.
        task: Who grades, where it can.

    Returns:
        `row`, `prompt` (the messages that were asked), `answer`, `verdict` (`right`, `wrong`, `no
        answer`, such as `f1 0.667`, or None where there is nothing to grade by), `reference` (or
        None) and `finished`.
    """
    asked, reference = split_prompt(prompt)
    return {
        "row": prompt.row,
        "prompt": asked,
        "answer": answer,
        "verdict": None if reference is None else _grade(prompt, answer, task),
        "reference": reference,
        "finished": finished,
    }


def _grade(prompt: Prompt, answer: str, task: ChatTask | None) -> str | None:
    """Return the verdict in words; a file may lack the columns that the task grades by."""
    if task is None or not any(name_graders(task).values()):
        return None
    try:
        return name_verdict(task.grade(prompt.record, answer))
    except (InputError, KeyError, NotImplementedError):
        return None


def _find_free(path: Path) -> Path:
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(1))
    return next(name for name in names if not name.exists())
