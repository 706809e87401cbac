"""Put together what is trained, the base, the adapter and the trained token rows; try it out."""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_sft.errors import require
from lit_sft.model.adapter import attach_lora, find_targets
from lit_sft.model.base_model import load_base, outline
from lit_sft.model.fast.kernels import any_kernels, make_fast
from lit_sft.model.fast.memory import cache_weights
from lit_sft.model.fast.siblings import part_unused
from lit_sft.model.noise import add_noise
from lit_sft.model.probe import LONGEST, Probe, probe_model
from lit_sft.model.saved_adapter import (
    load_adapter,
    read_adapter_config,
    read_adapter_tokens,
    require_same_lora,
)
from lit_sft.model.untrained_tokens import choose_tokens

if TYPE_CHECKING:
    from peft import PeftModel

    from lit_sft.model.module import SFTModule


class BuiltModel(NamedTuple):
    """A model that is ready to train."""

    model: "PeftModel"
    """In training mode; only the adapter asks for gradients."""
    trained_tokens: dict[str, str]
    """Tokens whose rows are trained as well, and why."""
    cached_bytes: int
    """What the weights take that were dequantised for good."""


def require_trainable(module: "SFTModule") -> None:
    """Raise `InputError` if a base cannot be trained as asked; reads configs alone.

    Args:
        module: Whose options say what is asked.
    """
    base = outline(module.base_model, module.base_config)
    find_targets(base, module.lora.target_modules)
    if module.adapter:
        config = read_adapter_config(module.adapter)
        require_same_lora(module.adapter, config, module.lora, base)


def build_model(
    module: "SFTModule",
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: torch.dtype,
    device: torch.device,
) -> BuiltModel:
    """Load a base and attach an adapter to it.

    Args:
        module: Whose options say which. The adapter starts from its seed, whatever the global
            random state; without a tokenizer, `trainable_tokens: auto` is none.
        tokenizer: As `load_tokenizer` returns it.
        dtype: What the base is computed in.
        device: Where it goes.

    Raises:
        InputError: If the adapter does not fit, or a token that is asked for is unknown.
    """
    base = load_base(module.base_model, module.quantization, dtype, device)
    cached_bytes = cache_weights(base, module.quantization.weight_cache, dtype, device)
    tokens = _find_trained_rows(base, module.adapter, module.trainable_tokens, tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(module.seed)
        model = attach_lora(base, module.lora, list(tokens))
    if module.adapter:
        load_adapter(model, module.adapter)
    make_fast(model)
    if module.neftune_noise_alpha:
        add_noise(model, module.neftune_noise_alpha)
    name: Any = tokenizer.convert_ids_to_tokens if tokenizer else str
    named = {name(token): reason for token, reason in tokens.items()}
    return BuiltModel(model, named, cached_bytes)


def try_out(model: "PeftModel", trainer: pl.Trainer) -> Probe:
    """See that the loss here is the model's own, and say how its rows are to be run.

    A data module pads its rows where the model cannot keep packed ones apart.

    Args:
        model: In training mode.
        trainer: What it is to be run by.
    """
    data: Any = getattr(trainer, "datamodule", None)
    packs = getattr(data, "batching", "padding_free") == "padding_free"
    with trainer.precision_plugin.forward_context(), any_kernels():
        probe = probe_model(model, packs, max_length=getattr(data, "max_length", LONGEST))
    part_unused(model)
    remark = probe.remark
    if packs and not probe.packs and hasattr(data, "pad_rows"):
        remark += f" ({data.pad_rows():.1%} of train is padding then)"
    if remark:
        rank_zero_info(remark)
    return probe


def _find_trained_rows(
    base: PreTrainedModel,
    adapter: str | None,
    trainable_tokens: Literal["auto", "none"] | list[str],
    tokenizer: PreTrainedTokenizerBase | None,
) -> dict[int, str]:
    """Return the tokens whose rows are trained, and why."""
    if adapter:
        return dict.fromkeys(read_adapter_tokens(adapter), "the adapter has it")
    if tokenizer is not None:
        embedding: Any = base.get_input_embeddings()
        return choose_tokens(trainable_tokens, embedding.weight.detach(), tokenizer)
    require(
        trainable_tokens in ("auto", "none"),
        "model.trainable_tokens: naming tokens takes a data module with a tokenizer",
    )
    return {}
