"""Put together what is trained, the base, the adapter and the trained token rows; try it out."""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_sft.errors import require
from lit_sft.model.adapter import Lora, attach_lora, name_saved_layers
from lit_sft.model.adapter_shape import is_unasked, take_shape
from lit_sft.model.base_model import fingerprint_base, load_base, outline
from lit_sft.model.fast.kernels import any_kernels, make_fast
from lit_sft.model.fast.memory import cache_weights
from lit_sft.model.fast.siblings import part_unused
from lit_sft.model.noise import add_noise
from lit_sft.model.optim import is_flat
from lit_sft.model.principal import start_from_principal
from lit_sft.model.probe import LONGEST, Probe, probe_model
from lit_sft.model.saved_adapter import (
    load_adapter,
    read_adapter_config,
    read_adapter_tokens,
    require_same_lora,
)
from lit_sft.model.sharded.sharded_base import load_sharded_base
from lit_sft.model.target_layers import find_targets
from lit_sft.model.untrained_tokens import choose_tokens

if TYPE_CHECKING:
    from peft import PeftModel

    from lit_sft.model.module import SFTModule


class BuiltModel(NamedTuple):
    """A model that is ready to train."""

    model: "PeftModel | PreTrainedModel"
    """In training mode; only the adapter asks for gradients, or without one, all there is."""
    trained_tokens: dict[str, str]
    """Tokens whose rows are trained as well, and why."""
    cached_bytes: int
    """What the weights take that were dequantised for good."""
    base_sha256: str
    """Of the base as it was loaded, as `fingerprint_base` returns it."""


def require_trainable(module: "SFTModule") -> None:
    """Raise `InputError` if a base cannot be trained as asked; reads configs alone.

    Args:
        module: Whose options say what is asked.
    """
    base = outline(module.base_model, module.base_config)
    if module.lora is None:
        _require_whole(module, base)
        return
    if module.adapter and is_unasked(module.lora):
        _take_shape(module, module.adapter, module.lora)
    find_targets(base, module.lora.target_modules)
    name_saved_layers(base, module.lora.modules_to_save)
    require(
        not module.lora.modules_to_save or module.trainable_tokens in ("auto", "none"),
        "model.trainable_tokens: model.lora.modules_to_save trains whole layers, and no rows of "
        "others; leave one of them out",
    )
    require(
        not module.adapter or module.lora.init_weights == "default",
        f"model.lora.init_weights: {module.lora.init_weights} begins anew, and model.adapter goes "
        "on from what it holds; leave one of them out (of an adapter that began so, model.lora.r "
        "and alpha are twice as large)",
    )
    if module.adapter:
        config = read_adapter_config(module.adapter)
        require_same_lora(module.adapter, config, module.lora, base)


def _take_shape(module: "SFTModule", adapter: str, lora: Lora) -> None:
    """Give a module the shape of its adapter, and say so where that is not the usual one."""
    taken = take_shape(adapter, read_adapter_config(adapter), lora)
    module.lora = taken
    if (taken.r, taken.alpha) != (lora.r, lora.alpha):
        rank_zero_info(f"model.lora is that of {adapter}: r {taken.r}, alpha {taken.alpha}")


def build_model(
    module: "SFTModule",
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: torch.dtype,
    device: torch.device,
    shards: bool = False,
) -> BuiltModel:
    """Load a base and attach an adapter to it, or let all of it be trained.

    What is trained is float32, so that a small step is not rounded away; autocast computes with it
    in the precision of the trainer. Only a frozen base is loaded in that.

    Args:
        module: Whose options say which. The adapter starts from its seed, whatever the global
            random state; without a tokenizer, `trainable_tokens: auto` is none.
        tokenizer: As `load_tokenizer` returns it.
        dtype: What the base is computed in.
        device: Where it goes.
        shards: Whether each rank keeps but its share of the base; all ranks must call this then.

    Raises:
        InputError: If the adapter does not fit, or a token that is asked for is unknown.
    """
    if module.lora is None:
        return _build_whole(module, device)
    stored = module.quantization
    if shards:
        base, cached_bytes = load_sharded_base(module.base_model, stored, dtype, device)
    else:
        base = load_base(module.base_model, stored, dtype, device)
        cached_bytes = cache_weights(base, stored.weight_cache, dtype, device)
    base_sha256 = fingerprint_base(base)
    wanted = "none" if module.lora.modules_to_save else module.trainable_tokens
    tokens = _find_trained_rows(base, module.adapter, wanted, tokenizer)
    # All devices would each get a context of this process, which is hundreds of MB.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(module.seed)
        model = attach_lora(base, module.lora, list(tokens))
        if module.lora.init_weights != "default":
            start_from_principal(model, module.lora)
    if module.adapter:
        load_adapter(model, module.adapter, base_sha256)
    make_fast(model)
    if module.neftune_noise_alpha:
        add_noise(model, module.neftune_noise_alpha)
    name: Any = tokenizer.convert_ids_to_tokens if tokenizer else str
    named = {name(token): reason for token, reason in tokens.items()}
    return BuiltModel(model, named, cached_bytes, base_sha256)


def _build_whole(module: "SFTModule", device: torch.device) -> BuiltModel:
    """Return a base whose weights are all trained."""
    model = load_base(module.base_model, module.quantization, torch.float32, device)
    base_sha256 = fingerprint_base(model)
    model.requires_grad_(True).train()
    if module.neftune_noise_alpha:
        add_noise(model, module.neftune_noise_alpha)
    return BuiltModel(model, {}, 0, base_sha256)


def _require_whole(module: "SFTModule", base: PreTrainedModel) -> None:
    """Raise `InputError` for options that go with an adapter alone.

    Args:
        module: Whose options say what is asked.
        base: Without weights.
    """
    stored, option = module.quantization, "model.lora: null trains all weights, and "
    require(
        stored.format == "none",
        f"{option}four bits cannot be trained: set model.quantization.format none, got "
        f"{stored.format}",
    )
    require(
        stored.weight_cache == "auto",
        f"{option}model.quantization.weight_cache {stored.weight_cache} is of frozen ones; leave "
        "it at auto",
    )
    require(
        not module.adapter,
        f"{option}model.adapter has its own: merge {module.adapter!r} into its base, and name that "
        "as model.base_model",
    )
    require(
        module.trainable_tokens in ("auto", "none"),
        f"{option}the rows of all tokens are among them: leave model.trainable_tokens out",
    )
    count = base.num_parameters()
    require(
        count < 2**31 or not is_flat(module.optimizer_name) or module.optimizer_name == "adamw",
        f"{option}bitsandbytes updates {2**31 - 1:,} of them at most, here are {count:,}: set "
        "model.optimizer adamw",
    )


def try_out(model: "PeftModel | PreTrainedModel", trainer: pl.Trainer) -> Probe:
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
