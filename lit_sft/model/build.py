"""Put together what is trained: the frozen base, the adapter, the trained token rows."""

from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from lit_sft.errors import require
from lit_sft.model.adapter import Lora, attach_lora
from lit_sft.model.base_model import Quantization, load_base
from lit_sft.model.fast.embedding import fuse_token_rows
from lit_sft.model.fast.kernels import Speed, compile_layers
from lit_sft.model.fast.lora import fuse_lora
from lit_sft.model.fast.memory import cache_weights, find_layers
from lit_sft.model.saved_adapter import load_adapter, read_adapter_tokens
from lit_sft.model.untrained_tokens import choose_tokens


class BuiltModel(NamedTuple):
    """A model that is ready to train."""

    model: Any
    """A `peft.PeftModel` in training mode; only the adapter asks for gradients."""
    trained_tokens: dict[str, str]
    """Tokens whose rows are trained as well, and why."""
    cached_bytes: int
    """What the weights take that were dequantised for good."""


def build_model(
    base_model: str,
    quantization: Quantization,
    lora: Lora,
    adapter: str | None,
    trainable_tokens: Literal["auto", "none"] | list[str],
    speed: Speed,
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> BuiltModel:
    """Load a base and attach an adapter to it.

    Args:
        base_model: A Hub id or a folder.
        quantization: How the base is stored.
        lora: The shape of the adapter.
        adapter: A folder or Hub id to take the adapter's weights from.
        trainable_tokens: As `SFTModule` takes them; without a tokenizer, `auto` is none.
        speed: What is done for it.
        tokenizer: As `load_tokenizer` returns it.
        dtype: What the base is computed in.
        device: Where it goes.
        seed: Of the adapter's initial weights, whatever the global random state.

    Raises:
        InputError: If the adapter does not fit, or a token that is asked for is unknown.
    """
    base = load_base(base_model, quantization, dtype, device)
    cached_bytes = cache_weights(base, quantization.weight_cache, dtype, device)
    if adapter:
        tokens = dict.fromkeys(read_adapter_tokens(adapter), "the adapter has it")
    elif tokenizer is not None:
        embedding: Any = base.get_input_embeddings()
        tokens = choose_tokens(trainable_tokens, embedding.weight.detach(), tokenizer)
    else:
        require(
            trainable_tokens in ("auto", "none"),
            "model.trainable_tokens: naming tokens takes a data module with a tokenizer",
        )
        tokens = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = attach_lora(base, lora, list(tokens))
    if adapter:
        load_adapter(model, adapter)
    if speed.fused_head:
        fuse_token_rows(model)
    if speed.fused_lora:
        fuse_lora(model)
    if speed.compile:
        compile_layers(find_layers(model))
    name: Any = tokenizer.convert_ids_to_tokens if tokenizer else str
    return BuiltModel(
        model, {name(token): reason for token, reason in tokens.items()}, cached_bytes
    )
