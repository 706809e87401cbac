"""The shape of an adapter that is gone on from or answers, taken from its own config."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_sft.errors import InputError
from lit_sft.model.adapter import Lora
from lit_sft.model.saved_adapter import TARGETING, name_saved, require_plain_lora


def is_unasked(lora: Lora) -> bool:
    """Return whether nobody says which shape an adapter is to have, but at most how it learns."""
    return replace(lora, dropout=Lora.dropout, loraplus_lr_ratio=Lora.loraplus_lr_ratio) == Lora()


def take_shape(adapter: str, config: Mapping[str, Any], lora: Lora) -> Lora:
    """Return options with the shape of an adapter.

    Layers that it takes out of its targets are not in them: `require_same_lora` refuses these.

    Args:
        adapter: Its folder or Hub id.
        config: Its `adapter_config.json`.
        lora: What says how it learns.

    Raises:
        InputError: If it is not plain LoRA, or does not say its shape.
    """
    require_plain_lora(adapter, config)
    targets = config.get(TARGETING[0])
    shape: dict[str, Any] = {
        "target_modules": targets if isinstance(targets, str) else tuple(sorted(targets or ())),
        "use_rslora": bool(config.get("use_rslora")),
        "use_dora": bool(config.get("use_dora")),
        "modules_to_save": tuple(sorted(name_saved(config))),
    }
    for option, field in (("r", "r"), ("alpha", "lora_alpha")):
        value = config.get(field, 8)  # PEFT's default
        if not isinstance(value, int | float) or value <= 0:
            raise InputError(
                f"model.adapter: expected {field} of {adapter!r} to be a positive number, got "
                f"{value!r:.40}"
            )
        shape[option] = int(value) if value == int(value) else value
    return replace(lora, **shape)
