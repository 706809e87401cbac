"""`logs/generations.jsonl`: some answers of every evaluation, which the loggers are told, too."""

import json
from collections.abc import Sequence

import lightning.pytorch as pl

from lit_sft.evaluation.exact_match import Answer
from lit_sft.files import replace_file
from lit_sft.run.folder import RunFolder
from lit_sft.run.records import read_generations


def keep_samples(trainer: pl.Trainer, answers: Sequence[Answer]) -> None:
    """Add answers, in place of what a run that was resumed had behind its step.

    Args:
        trainer: Whose loggers have a table of them, where they can.
        answers: Of the model as it is now.
    """
    step = trainer.global_step
    path = RunFolder.of(trainer).generations
    earlier = [x.line for x in read_generations(path) if x.step < step] if step > 0 else []
    lines = [json.dumps({"step": step} | answer.describe()) for answer in answers]
    with replace_file(path) as staged:
        staged.write_text("".join(f"{line}\n" for line in [*earlier, *lines]), encoding="utf-8")
    columns = list(answers[0].describe()) if answers else []
    rows = [list(answer.describe().values()) for answer in answers]
    for logger in trainer.loggers:
        if hasattr(logger, "log_table"):
            logger.log_table("val/generations", columns=columns, data=rows, step=step)
