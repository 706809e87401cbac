"""Attach a LoRA adapter to a base (Hu et al., 2021), or one that was trained before."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lit_sft.errors import InputError, require
from lit_sft.model.adapter_config import name_token_layers
from lit_sft.model.base_model import Lora
from lit_sft.model.fast.embedding import find_frozen_layer
from lit_sft.model.targets import find_targets
from lit_sft.paths import locate

PROVENANCE = "lit_sft.json"
"""In an adapter's folder: what the adapter was trained on, so that a wrong base is found out."""
SAMPLED_EVERY = 997
"""Rows of the embedding from one sampled to the next."""


def attach_lora(model: PreTrainedModel, lora: Lora, token_ids: Sequence[int] = ()) -> Any:
    """Return the base as a `peft.PeftModel` in training mode; only the adapter asks for gradients.

    `from_pretrained` leaves a model in eval mode, where dropout and gradient checkpointing are
    silently off.

    Args:
        model: The frozen base.
        lora: The shape of the adapter.
        token_ids: Rows of the embedding, and of the head, that are trained as well.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=find_targets(model, lora.target_modules),
        trainable_token_indices=name_token_layers(model, token_ids) if token_ids else None,
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config).train()
    except ValueError as error:  # such as layers of Mamba that PEFT knows its kernels to read past
        raise InputError(f"lora.target_modules: {error}") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # PEFT leaves the token rows in the dtype of the base
            parameter.data = parameter.data.float()
    return adapted


def load_adapter(model: Any, adapter: str) -> None:
    """Put the weights of an adapter's folder or Hub id into a `peft.PeftModel`.

    Raises:
        InputError: If the adapter was trained on another base, or its tensors are not exactly the
            model's.
    """
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    _require_same_base(model, adapter)
    weights = load_peft_weights(locate(adapter), device="cpu")
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    require_same_shapes(own, weights, f"model.adapter {adapter!r}")
    set_peft_model_state_dict(model, weights)


def require_same_shapes(expected: dict[str, Any], given: dict[str, Any], what: str) -> None:
    """Raise `InputError` unless two sets of tensors have the same names and shapes.

    Args:
        expected: Those of this model.
        given: Those of a file.
        what: What to call the file.
    """

    def describe(tensor: torch.Tensor | None) -> str:
        return "missing" if tensor is None else str(list(tensor.shape))

    differing = [
        f"{name}: here {describe(expected.get(name))}, there {describe(given.get(name))}"
        for name in sorted(expected.keys() | given.keys())
        if describe(expected.get(name)) != describe(given.get(name))
    ]
    require(
        not differing,
        f"{what} is of another adapter: {len(differing)} tensors differ, such as "
        f"{'; '.join(differing[:3])}. Were model.lora or model.trainable_tokens changed?",
    )


def fingerprint_base(model: nn.Module) -> str:
    """Return a SHA-256 of the base's norms and of some rows of its embedding, in hexadecimal.

    These are never quantised and take no time to read. They are rounded to bfloat16 first, so that
    the dtype in which a base is loaded changes nothing. Two models that share both, such as one and
    what became of it by a LoRA on its attention layers, are taken for the same.

    Args:
        model: With or without an adapter, which changes nothing: what is read is frozen.
    """
    digest = hashlib.sha256()
    embedding = find_frozen_layer(model.get_input_embeddings())  # type: ignore[operator]
    tensors = [p for _, p in sorted(model.named_parameters()) if p.ndim == 1]
    for tensor in [*tensors, embedding.weight[::SAMPLED_EVERY]]:
        digest.update(tensor.detach().bfloat16().cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _require_same_base(model: Any, adapter: str) -> None:
    path = Path(locate(adapter)) / PROVENANCE
    if not path.is_file():
        return  # trained by another tool, or not on this machine: the shapes must do
    there = json.loads(path.read_text(encoding="utf-8"))
    here = fingerprint_base(model)
    require(
        there.get("base_sha256") == here,
        f"model.adapter: {adapter!r} was trained on another base, {there.get('base_model')!r} "
        f"(fingerprint {str(there.get('base_sha256'))[:12]}; here it is {here[:12]})",
    )
