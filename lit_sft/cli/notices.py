"""Known harmless notices of the libraries underneath, silenced one by one."""

import logging
import re
import sys
import warnings
from pathlib import Path

WARNINGS = (
    # Lightning, about choices that this package makes on purpose
    r"The '\w+' does not have many workers",
    r"You defined a `validation_step` but have no `val_dataloader`",
    r"Total length of `\w+` across ranks is zero",
    r"Using ModelCheckpoint with manual optimization and every_n_train_steps",
    r"Starting from v1\.9\.0, `tensorboardX` has been removed",
    r"Precision .* is not supported by the model summary",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"Trying to infer the `batch_size` from an ambiguous collection",
    # all ranks log one figure, over all of them
    r"It is recommended to use `self\.log\('.*', \.\.\., sync_dist=True\)`",
    # jsonargparse, about what Lightning calls
    r"\s+By default only one JsonargparseDeprecationWarning",
    r"\s+``instantiate_classes`` was deprecated",
    # torch, about itself
    r"`torch\.jit\.\w+` is deprecated",
    r".*'pin_memory' argument is set as true but no accelerator is found",
    # DDP is made on a stream of its own, as Lightning does on purpose
    r"The AccumulateGrad node's stream does not match",
    # what LayerGraphs hands from layer to layer; one that writes into it is no layer of ours
    r"FSDP2-wrapped module \(.*\) returned a view tensor",
    # transformers: the new names do not exist in 5.17, which is supported too
    r"`is_gradient_checkpointing` is deprecated",
    r"`gradient_checkpointing_enable` is deprecated",
    # PEFT, which sets it right itself for the layers of GPT-2
    r"fan_in_fan_out is set to False but the target module is `Conv1D`",
    # bitsandbytes, on a machine without a GPU
    r"Paged optimizers are not supported on CPU",
)
MESSAGES = {
    "lightning.pytorch.utilities.rank_zero": (
        r"GPU available:",
        r"TPU available:",
        r"HPU available:",
        r"Using .* Automatic Mixed Precision",
        r"You are using a CUDA device .* that has Tensor Cores",
        r"`Trainer\.fit` stopped:",
        r".*Tip: ",
        r"Restor(ing|ed) ",
        r"Loaded model weights",
        r"-{9,}\ndistributed_backend=",
    ),
    # every checkpoint is loaded with weights_only=True, whatever Lightning is told
    "lightning.pytorch.trainer.connectors.checkpoint_connector": (r"`weights_only` was not set",),
    "lightning.fabric.utilities.seed": (r"(\[rank: \d+\] )?Seed set to",),
    "lightning.pytorch.accelerators.cuda": (r"LOCAL_RANK:",),
    # of several ranks, which sessions.jsonl counts
    "lightning.fabric.utilities.distributed": (r"Initializing distributed",),
    # for a moment before the first step, it listens beside lit_sft.signals
    "lightning.pytorch.trainer.connectors.signal_connector": (
        r".*Received SIGTERM",
        r"SLURM auto-requeueing enabled",
    ),
    # what is missing is an error here
    "transformers.modeling_utils": (r"[\s\S]*LOAD REPORT[\s\S]*MISSING",),
    "bitsandbytes.backends.cpu.ops": (r"Failed to load CPU gemm_4bit_forward",),
}
SECOND_DEATH = re.compile(r"DataLoader worker \(pid")
"""What torch says once more, with a traceback, of a dead worker when its loader is taken down."""


def silence_known_notices() -> None:
    """Drop the notices listed here, by their text; everything else is still shown."""
    for pattern in WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    _tell_own_warnings_in_a_line()
    for name, patterns in MESSAGES.items():
        logging.getLogger(name).addFilter(_Known(re.compile("|".join(patterns))))
    tell = sys.unraisablehook
    sys.unraisablehook = lambda x: None if SECOND_DEATH.match(str(x.exc_value)) else tell(x)


def _tell_own_warnings_in_a_line() -> None:
    """Leave out of this package's own warnings where in the code they come from."""
    in_full, package = warnings.formatwarning, Path(__file__).parents[1]

    def format_warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if Path(filename).is_relative_to(package):
            return f"warning: {message}\n"
        return in_full(message, category, filename, lineno, line)

    warnings.formatwarning = format_warning


class _Known(logging.Filter):
    def __init__(self, pattern: re.Pattern[str]) -> None:
        super().__init__()
        self.pattern = pattern

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.pattern.match(record.getMessage().strip())
