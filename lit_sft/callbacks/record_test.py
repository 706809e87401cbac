"""Say which weights are measured, and keep what `lit-sft test` measures."""

import re
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

from lit_sft.data.duplicates import count_in_test
from lit_sft.data.options import DataOptions
from lit_sft.data.protocol import run_data
from lit_sft.data.tokenizer import hash_template
from lit_sft.export.card import name_source
from lit_sft.model.module import SFTModule
from lit_sft.run.folder import RunFolder, is_trial
from lit_sft.run.measured import find_weights, write_measured

LOWER_END = re.compile(r"(exact_match|f1)_low(|/.*)")
"""The name of a figure: the lower end of an interval, of all rows or of a source."""


class RecordTest(pl.Callback):
    """Write `measured/test-step-N.json` under the run's folder, or that of `base` or `adapter`.

    It has the figures, with the 95 % intervals of exact match and F1, and what they are of: the
    base, the checkpoint, the template, the rows, their grader, and how many rows of `train` ask the
    same.
    """

    @rank_zero_only
    def on_validation_start(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Say which weights `lit-sft validate` measures."""
        if trainer.state.fn == "validate":
            print(f"measuring {find_weights(trainer, pl_module).text}", flush=True)

    @rank_zero_only
    def on_test_start(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Say which weights are tested."""
        print(f"measuring {find_weights(trainer, pl_module).text}", flush=True)

    @rank_zero_only
    def on_predict_start(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Say which weights answer."""
        print(f"answering with {find_weights(trainer, pl_module).text}", flush=True)

    @rank_zero_only
    def on_test_end(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Write the figures, and say where."""
        if is_trial(trainer):
            return
        weights = find_weights(trainer, pl_module)
        record = describe_test(trainer, pl_module, weights._asdict())
        path = write_measured(RunFolder.of(trainer), weights, record)
        if rows := record["data"]["train_rows_in_test"]:
            print(f"the questions of {rows:,} rows of train stand in test, too", flush=True)
        print(f"wrote {path}", flush=True)


def describe_test(
    trainer: pl.Trainer, module: SFTModule, weights: dict[str, object]
) -> dict[str, Any]:
    """Return what was measured and what of, as plain values; no place on this machine is named.

    Args:
        trainer: After the test.
        module: What was tested.
        weights: Which `checkpoint` and `step` it had.
    """
    data = run_data(trainer)
    source = getattr(data, "task", data)
    test = getattr(data, "prepared", {}).get("test")
    figures = {
        name.removeprefix("test/"): value.item()
        for name, value in sorted(trainer.callback_metrics.items())
        if name.startswith("test/")
    }
    ends = [match for name in figures if (match := LOWER_END.fullmatch(name))]
    intervals = {
        f"{of}_95{source}": [figures.pop(f"{of}_{end}{source}") for end in ("low", "high")]
        for of, source in (match.groups() for match in ends)
    }
    return {
        "base_model": name_source(module.base_model),
        "base_sha256": module.base_sha256,
        "checkpoint": weights["checkpoint"],
        "step": weights["step"],
        "adapter": name_source(module.adapter) if module.adapter else None,
        "template_sha256": hash_template(data.tokenizer),
        "precision": str(trainer.precision),
        "quantization": module.quantization.format,
        "data": {
            "dataset": name_source(getattr(source, "path", type(source).__name__)),
            "split": "test",
            "rows": test.ledger.rows if test else None,
            "grader": source.grader_name() if hasattr(source, "grader_name") else None,
            "sha256": test.fingerprint if test else None,
            "train_rows_in_test": count_in_test(data) if isinstance(data, DataOptions) else None,
        },
        "figures": figures,
        "exact_match_95": None,
    } | intervals
