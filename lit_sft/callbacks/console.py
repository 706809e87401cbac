"""What a run prints before it starts, and what came of it at the end."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

from lit_sft.data.protocol import run_data
from lit_sft.data.repetition import tell_repetition
from lit_sft.evaluation.exact_match import format_table
from lit_sft.model.module import SFTModule
from lit_sft.model.sharded.packed_linear import count_parameters
from lit_sft.run.folder import RunFolder
from lit_sft.run.metrics_file import read_metrics
from lit_sft.run.records import read_generations

COMPARED = ("val/loss", "val/exact_match", "val/f1", "val/no_answer", "val/unfinished")
"""Figures of the first and of the last evaluation."""


class Summary(pl.Callback):
    """Print one line on what is trained, and at the end what came of it, from the run's folder.

    Args:
        samples: How many answers of the last evaluation are printed.
    """

    def __init__(self, samples: int = 5) -> None:
        self.samples = samples
        self._has_trained = False

    @rank_zero_only
    def setup(self, trainer: pl.Trainer, pl_module: SFTModule, stage: str) -> None:
        """Print what is loaded: with a large base, the next half minute is silent."""
        print(f"loading {pl_module.base_model} ({pl_module.quantization.format})", flush=True)

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Print how much is frozen and how much is trained."""
        trained = sum(p.numel() for p in pl_module.trained_parameters.values())
        model: Any = pl_module.model
        if pl_module.lora is None:
            print(f"training all {trained:,} parameters, in float32", flush=True)
            return
        frozen = count_parameters(model.get_base_model()) - trained
        print(
            f"training {trained:,} parameters of a LoRA adapter; the base's {frozen:,} are frozen",
            flush=True,
        )
        if pl_module.cached_bytes:
            size = pl_module.cached_bytes / 2**20
            print(f"its 4-bit weights are dequantised once, and take {size:,.0f} MiB", flush=True)
        for token, reason in pl_module.trained_tokens.items():
            print(f"training the row of {token} too: {reason}", flush=True)

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Print where a resumed run goes on; a finished one never gets here."""
        self._has_trained = True
        ledger = run_data(trainer).describe_data().get("train")
        rows = ledger.get("kept", 0) if isinstance(ledger, dict) else 0
        if text := tell_repetition(rows, pl_module.total_steps() / trainer.num_training_batches):
            print(text, flush=True)
        if trainer.global_step:
            print(
                f"going on from step {trainer.global_step} of {pl_module.total_steps()}", flush=True
            )

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Print before and after, some answers, and where the results are."""
        if not self._has_trained:
            print(
                f"all {trainer.global_step} steps were taken before, and none was left: raise "
                "trainer.max_steps or trainer.max_epochs to go on"
            )
        folder = RunFolder.of(trainer)
        print(describe_change(folder.metrics))
        print(describe_answers(folder.generations, self.samples, trainer.global_step), end="")
        print("\n".join(f"wrote {path}" for path in folder.results()))


def describe_change(metrics: Path) -> str:
    """Return the figures of the first and of the last evaluation side by side."""
    rows = [*read_metrics(metrics)[1].values()]
    if not rows:
        return ""
    columns: dict[str, dict[str, float]] = {"before": {}, "after": {}}
    for name in COMPARED:
        values = [float(row[name]) for row in rows if row.get(name)]
        if len(values) > 1 and rows[0]["step"] == "0" and rows[0].get(name):
            columns["before"][name], columns["after"][name] = values[0], values[-1]
    if columns["before"]:
        return "\n" + format_table(columns)
    last = rows[-1]
    return "\n".join(
        f"{name:<18}{float(last[name]):.4f}" for name in ("train/loss", *COMPARED) if name in last
    )


def describe_answers(generations: Path, count: int, step: int) -> str:
    """Return some answers of the last evaluation up to a step, with their questions and verdicts.

    A run may end at an earlier checkpoint than it had come to.
    """
    answers = read_generations(generations)
    latest = max((answer.step for answer in answers if answer.step <= step), default=None)
    last = [answer.values for answer in answers if answer.step == latest]
    texts = [
        f"\n[{answer['verdict']}] {answer['question']}\n{_indent(answer['output'])}\n"
        for answer in last[:count]
    ]
    return "".join(texts) + "\n"


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
