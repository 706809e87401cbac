"""What to try when the memory runs out."""

from typing import Protocol, runtime_checkable

import lightning.pytorch as pl
import torch

from lit_sft.data.protocol import SizedData
from lit_sft.model.module import SFTModule

RECOMPUTE = "GradientCheckpointing"
"""The callback that saves the most, and is named where a run has none."""


@runtime_checkable
class Advises(Protocol):
    """A callback that knows how it could need less."""

    def advise_less_memory(self) -> str:
        """Return what to set, or nothing where it needs the least already."""


class MemoryAdvice(pl.Callback):
    """Note the next smaller sizes on an `OutOfMemoryError`; the command line prints them."""

    def on_exception(
        self, trainer: pl.Trainer, pl_module: SFTModule, exception: BaseException
    ) -> None:
        """Note what fits this run."""
        if not isinstance(exception, torch.OutOfMemoryError):
            return
        data, callbacks = getattr(trainer, "datamodule", None), getattr(trainer, "callbacks", [])
        lines = [advise_sizes(data)] if isinstance(data, SizedData) else []
        lines += _advise_settings(callbacks, pl_module)
        exception.add_note("\n".join(["To need less:", *(f"  {line}" for line in lines)]))


def advise_sizes(data: SizedData) -> str:
    """Return options for half the tokens at once and the same gradient, where there are any."""
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


def _advise_settings(callbacks: list[pl.Callback], module: SFTModule) -> list[str]:
    own = [(type(x).__name__, x.advise_less_memory()) for x in callbacks if isinstance(x, Advises)]
    recompute = [line for name, line in own if name == RECOMPUTE]
    lines = recompute or [f"--trainer.callbacks+=lit_sft.{RECOMPUTE}"]
    if module.cached_bytes:
        lines.append("--model.quantization.weight_cache none")
    if module.quantization.format == "none" and module.lora:
        lines.append("--model.quantization.format nf4")
    return [*filter(None, lines), *(line for name, line in own if name != RECOMPUTE)]
