"""A run as a model again: the base that it was trained on, with its adapter beside it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_sft.errors import require
from lit_sft.export.trained_run import TrainedRun, read_run
from lit_sft.model.adapter import attach_lora
from lit_sft.model.base_model import load_base
from lit_sft.model.fast.memory import cache_weights

if TYPE_CHECKING:
    from peft import PeftModel


def load_trained(
    run: str | Path, checkpoint: str | None = None, dtype: torch.dtype | None = None
) -> "tuple[PeftModel, PreTrainedTokenizerBase]":
    """Return a trained model that is ready to answer, and its tokenizer.

    The base is the one that was trained on: its linear layers hold the values of their four bits.

    Args:
        run: The folder of a run.
        checkpoint: `best`, `last` or a file; None takes the best where a metric was monitored,
            else the last.
        dtype: What to compute in; None takes that of training.

    Returns:
        A `peft.PeftModel` in eval mode, on the CPU, and the tokenizer with the chat template of
        training. `model.generate` stops where an answer ends.

    Raises:
        InputError: As `read_run`.
    """
    return build_trained(read_run(run, checkpoint), dtype)


def build_trained(
    run: TrainedRun, dtype: torch.dtype | None = None
) -> "tuple[PeftModel, PreTrainedTokenizerBase]":
    """Return what `load_trained` does, of a run that was read."""
    base = load_trained_base(run, dtype)
    model = attach_lora(base, run.lora, run.weights.token_ids)
    known = {f"_model.{name}": value for name, value in model.named_parameters()}
    require(
        {name for name, value in known.items() if value.requires_grad} == set(run.state),
        f"export: {str(run.checkpoint)!r} holds other tensors than model.lora in config.yaml says",
    )
    with torch.no_grad():
        for name, tensor in run.state.items():
            known[name].copy_(tensor)
    inner: Any = model.get_base_model()
    inner.generation_config = run.generation_config
    return model.requires_grad_(False).eval(), run.tokenizer


def load_trained_base(run: TrainedRun, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return the base with the values that training computed with, on the CPU.

    Args:
        run: As `read_run` returns it.
        dtype: What to compute in; None takes that of training.
    """
    device = torch.device("cpu")
    base = load_base(run.base.base_model, run.quantization, run.dtype, device)
    cache_weights(base, "auto", run.dtype, device)
    for parameter in base.parameters():
        if dtype is not None and parameter.is_floating_point():  # those in four bits are not
            parameter.data = parameter.data.to(dtype)
    base.config.use_cache = True
    return base
