"""What to try when the memory runs out."""

from typing import Any

import lightning.pytorch as pl
import torch

from lit_sft.callbacks.generation_eval import GenerationEval
from lit_sft.callbacks.gradient_checkpointing import GradientCheckpointing


class MemoryAdvice(pl.Callback):
    """Note the next smaller sizes on an `OutOfMemoryError`; the command line prints them."""

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Note what fits this run."""
        if not isinstance(exception, torch.OutOfMemoryError):
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        lines = [advise_sizes(data), *_advise_settings(trainer, pl_module)]
        exception.add_note("\n".join(["To need less:", *(f"  {line}" for line in lines)]))


def advise_sizes(data: Any) -> str:
    """Return options for about half the tokens at once and the same gradient, where there are any.

    Args:
        data: An `SFTDataModule`.
    """
    tokens, length = data.max_tokens_per_pass, data.max_length
    rows, count = data.batch_size, data.accumulate_grad_batches
    if data.batching == "padded" and rows > 1:
        fewer = rows // 2 if rows % 2 == 0 else 1
        return (
            f"--data.batch_size {fewer} --data.accumulate_grad_batches {count * rows // fewer} "
            f"(now {rows} and {count}; the same gradient)"
        )
    if data.batching == "padding_free" and tokens > length:
        return (
            f"--data.max_tokens_per_pass {max(length, tokens // 2)} (now {tokens}; the same "
            "gradient)"
        )
    shorter = length // 2
    return (
        f"--data.max_length {shorter} --data.max_tokens_per_pass {shorter} (a row at a time "
        f"is run already; rows over {shorter} tokens would be dropped)"
    )


def _advise_settings(trainer: pl.Trainer, pl_module: Any) -> list[str]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    lines = []
    recompute = [x.policy for x in callbacks if isinstance(x, GradientCheckpointing)]
    if not recompute:
        lines.append("--trainer.callbacks+=lit_sft.GradientCheckpointing")
    elif recompute != ["all"]:
        lines.append("GradientCheckpointing's policy: all")
    if pl_module.cached_bytes:
        lines.append("--model.quantization.weight_cache none")
    if pl_module.quantization.format == "none":
        lines.append("--model.quantization.format nf4")
    for callback in callbacks:
        if isinstance(callback, GenerationEval):
            fewer = callback.max_batch_tokens // 2
            lines.append(
                f"GenerationEval's max_batch_tokens: {fewer} (now {callback.max_batch_tokens}), if "
                "it was in an evaluation"
            )
    return lines
