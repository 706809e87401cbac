"""What is to be planned: the model's outline, its data, and what decides how it is run."""

from functools import partial
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch

from lit_sft.callbacks.generation_eval import GenerationEval
from lit_sft.callbacks.gradient_checkpointing import GradientCheckpointing, count_pass_tokens
from lit_sft.data.datamodule import SFTDataModule
from lit_sft.data.prompts import find_chat_tokens
from lit_sft.model.answering import count_cached_tokens
from lit_sft.model.base_model import outline
from lit_sft.model.device import compute_dtype
from lit_sft.model.fast.memory import (
    PROBED_TOKENS,
    count_kept_bytes,
    decide_cache,
    find_layers,
    free_memory_bytes,
)
from lit_sft.model.loss import decode
from lit_sft.model.module import SFTModule
from lit_sft.model.sharded.choice import is_to_shard
from lit_sft.model.stored_base import StoredBase, measure_base, share_out
from lit_sft.plan.memory_plan import count_batch_rows
from lit_sft.plan.weightless import Weightless
from lit_sft.plan.workload import Answers


class UnknownPassError(Exception):
    """A model that asks for the contents of its tensors; such are some mixtures of experts."""


class Job(NamedTuple):
    """What is to be planned, and on what."""

    trainer: pl.Trainer
    module: SFTModule
    data: SFTDataModule
    device: torch.device
    dtype: torch.dtype
    base: StoredBase
    cached: int
    """Bytes of the 4-bit weights, dequantised for good; 0 without."""
    free: float
    """Bytes that the device has left, once the base is there."""
    weightless: Weightless

    @property
    def config(self) -> Any:
        """Of the text model."""
        return self.module.base_config.get_text_config()

    @property
    def packed(self) -> bool:
        """Whether rows lie end to end."""
        return self.data.batching == "padding_free"

    def autocast(self) -> Any:
        """Return a new context of the run's precision."""
        return self.trainer.precision_plugin.forward_context()


def find_token_rows(module: SFTModule, data: SFTDataModule) -> int:
    """Return how many rows of the embedding may be trained; `auto` may find fewer untrained."""
    if module.lora and module.lora.modules_to_save:
        return 0
    if isinstance(module.trainable_tokens, list):
        return len(module.trainable_tokens)
    return 0 if module.trainable_tokens == "none" else len(set(find_chat_tokens(data.tokenizer)))


def outline_job(trainer: pl.Trainer, module: SFTModule, data: SFTDataModule, tokens: int) -> Job:
    """Put together what is planned, and decide what the free memory decides of the base.

    Args:
        trainer: With a precision and a device.
        module: Whose options say what is trained.
        data: With its splits loaded.
        tokens: Rows of the embedding that are trained as well.

    Raises:
        InputError: If the base cannot be stored or trained as asked.
        UnknownPassError: If there is no adapter.
    """
    if module.lora is None:
        raise UnknownPassError("model.lora: null trains all weights, which is not planned here")
    device, dtype = trainer.strategy.root_device, compute_dtype(str(trainer.precision))
    layers = outline(module.base_model, module.base_config)
    base, cache = measure_base(layers, module.quantization, dtype), module.quantization.weight_cache
    if is_to_shard(module):
        base, cache = share_out(base, trainer.world_size), "none" if cache == "auto" else cache
    free, cached = free_memory_bytes(device), base.quantized * dtype.itemsize
    packed = base.codes + base.scales
    if not decide_cache(cache, cached, dtype, device, free - packed):
        cached = 0
    free -= (cached or packed) + base.embeddings + base.others
    weightless = Weightless(layers, module.lora, tokens, dtype, device)
    return Job(trainer, module, data, device, dtype, base, cached, free, weightless)


def count_kept(job: Job) -> float:
    """Return what `count_bytes_per_token` finds in the loaded model, but for its head.

    Rows are padded from here on where packed ones cannot be run.

    Raises:
        UnknownPassError: If padded ones cannot be either.
    """
    try:
        return _count_kept(job)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        if job.packed:
            job.data.pad_rows()
            return count_kept(job)
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        text = f"{job.module.base_model} cannot be run without weights ({reason:.150})"
        raise UnknownPassError(text) from error


def _count_kept(job: Job) -> float:
    model, mode = job.weightless.model, job.weightless.mode
    batch = job.weightless.make_batch([PROBED_TOKENS], job.packed)
    with mode, job.autocast():
        kept = count_kept_bytes(model, partial(decode, model, batch))
    return kept / PROBED_TOKENS / len(find_layers(model))


def count_recomputed(job: Job, layers: int, per_token: float) -> int:
    """Return how many layers the run's callbacks will let compute their forward again."""
    callbacks: list[pl.Callback] = job.trainer.callbacks  # type: ignore[attr-defined]
    chosen = [x for x in callbacks if isinstance(x, GradientCheckpointing)]
    kept = per_token * count_pass_tokens(job.data)
    return max((x.count(layers, kept, job.free) for x in chosen), default=0)


def find_evaluations(trainer: pl.Trainer) -> list[GenerationEval]:
    """Return the callbacks that let the model answer."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [x for x in callbacks if isinstance(x, GenerationEval)]


def count_rows(job: Job, evaluation: GenerationEval, answers: Answers) -> int:
    """Return the rows of the first batch of answers."""
    most = evaluation.max_batch_tokens
    if most == "auto":
        most = count_cached_tokens(job.config, job.device)
    return count_batch_rows(answers.prompts, answers.max_new_tokens, most)
