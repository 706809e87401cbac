"""Which linear layers get an adapter, by what the options or another tool's config say."""

import re
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lit_sft.errors import InputError, suggest

if TYPE_CHECKING:
    from lit_sft.model.loss import CausalLM

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
"""In the name or the class of a module whose linear layers are q, k, v and o."""


def find_targets(model: PreTrainedModel, wanted: str | Sequence[str]) -> list[str] | str:
    """Return what PEFT is to be told, after a look at the layers that there are.

    Args:
        model: A model of transformers; its weights are not looked at.
        wanted: `attention`, `all-linear`, names, or a regular expression over full names.

    Returns:
        Names, each as short as it may be without meaning other layers too; a regular expression is
        returned as it is.

    Raises:
        InputError: If it names no linear layer.
    """
    layers = _list_linear_layers(model)
    if wanted == "attention":
        found = [name for name in layers if _is_in_attention(model, name)]
    elif wanted == "all-linear":
        found = [name for name in layers if not _is_read_by_a_kernel(model, name)]
    elif isinstance(wanted, str):
        return _require_match(wanted, layers)
    else:
        return _require_names(wanted, layers)
    if not found:
        raise InputError(
            f"lora.target_modules: {type(model).__name__} has no layer for {wanted!r}; it has "
            f"{_describe(layers)}"
        )
    return _shorten(found, layers)


def list_adapted(
    model: PreTrainedModel, targets: str | Sequence[str], **others: object
) -> set[str]:
    """Return the full names of the modules that PEFT adapts for what it is told, by its own rule.

    Args:
        model: A model of transformers.
        targets: As `find_targets` returns it, or as `adapter_config.json` holds it.
        others: `exclude_modules`, `layers_to_transform` and `layers_pattern`, likewise.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(target_modules=targets, **others)  # type: ignore[arg-type]
    names = (name for name, _ in model.named_modules() if name)
    return {name for name in names if check_target_module_exists(config, name)}


def _list_linear_layers(model: "CausalLM") -> list[str]:
    """Return the full names of what LoRA can adapt, but for the head and for routers of experts."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and "router" not in name
    ]


def _is_in_attention(model: PreTrainedModel, name: str) -> bool:
    """Return whether a layer stands in a module that is called attention, or whose class is."""
    parent = name.rpartition(".")[0]
    of_class = type(model.get_submodule(parent)).__name__
    return bool(ATTENTION.search(parent.rpartition(".")[2]) or ATTENTION.search(of_class))


def _is_read_by_a_kernel(model: PreTrainedModel, name: str) -> bool:
    """Return whether the kernel of a state-space layer may read the weight, past an adapter."""
    parent, _, own = name.rpartition(".")
    layer = model.get_submodule(parent)
    return own == "out_proj" and hasattr(layer, "A_log") and hasattr(layer, "D")


def _require_match(expression: str, layers: Sequence[str]) -> str:
    try:
        matches = [name for name in layers if re.fullmatch(expression, name)]
    except re.error as error:
        raise InputError(
            f"lora.target_modules: {expression!r} is no regular expression ({error}); use "
            "attention, all-linear, or a list of names"
        ) from error
    if not matches:
        names, example = ["attention", "all-linear"], next(iter(layers), "none")
        raise InputError(
            f"lora.target_modules: {expression!r} matches no linear layer; a regular expression "
            f"has to match the full name, such as {example!r}.{suggest(expression, names)}"
        )
    return expression


def _require_names(names: Sequence[str], layers: Sequence[str]) -> list[str]:
    missing = [name for name in names if not _select(name, layers)]
    if missing:
        raise InputError(
            f"lora.target_modules: the model has no linear layer {', '.join(missing)}; it has "
            f"{_describe(layers)}"
        )
    return list(names)


def _select(ending: str, layers: Sequence[str]) -> set[str]:
    """Return the layers that PEFT takes for a name: those that end on it, by whole parts."""
    return {name for name in layers if name == ending or name.endswith(f".{ending}")}


def _shorten(found: Sequence[str], layers: Sequence[str]) -> list[str]:
    """Return the shortest endings that select what was found and nothing else."""
    chosen = set(found)
    endings: set[str] = set()
    for name in found:
        parts = name.split(".")
        for length in count(1):
            ending = ".".join(parts[-length:])
            if _select(ending, layers) <= chosen:
                endings.add(ending)
                break
    return sorted(endings)


def _describe(layers: Sequence[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in layers})) or "none"
