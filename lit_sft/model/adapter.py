"""Attach a LoRA adapter to a base (Hu et al., 2021): to which layers, and to which token rows."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lit_sft.errors import InputError, require, suggest

if TYPE_CHECKING:
    from peft import PeftModel

    from lit_sft.model.loss import CausalLM

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
"""In the name or the class of a module whose linear layers are q, k, v and o."""


@dataclass(frozen=True)
class Lora:
    """The shape of the adapter.

    Args:
        r: The rank.
        alpha: The update is scaled by `alpha / r`.
        dropout: Of the adapter's input, in training.
        target_modules: The linear layers that get an adapter: `attention` (q, k, v and o, by
            whatever names the model has), `all-linear` (all but the head), a list of names, or a
            regular expression over full names.
        use_rslora: The update is scaled by `alpha / sqrt(r)` instead (rsLoRA, Kalajdzievski, 2023).
        loraplus_lr_ratio: The learning rate of the halves B is that of all others times this
            (LoRA+, Hayou et al., 2024); 1 for the same.
    """

    r: int = 32
    alpha: int = 64
    dropout: float = 0.1
    target_modules: tuple[str, ...] | str = "attention"
    use_rslora: bool = False
    loraplus_lr_ratio: float = 1.0

    def __post_init__(self) -> None:
        require(self.r > 0, f"lora.r must be positive, got {self.r}")
        require(self.alpha > 0, f"lora.alpha must be positive, got {self.alpha}")
        require(0 <= self.dropout < 1, f"lora.dropout must be in [0, 1), got {self.dropout}")
        require(bool(self.target_modules), "lora.target_modules must name at least one layer")
        require(
            self.loraplus_lr_ratio > 0,
            f"lora.loraplus_lr_ratio must be positive, got {self.loraplus_lr_ratio}",
        )

    @property
    def scaling(self) -> float:
        """What the update `B @ A` is multiplied by."""
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


def attach_lora(model: PreTrainedModel, lora: Lora, token_ids: Sequence[int] = ()) -> "PeftModel":
    """Return the base with an adapter, in training mode; only the adapter asks for gradients.

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
        use_rslora=lora.use_rslora,
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


def name_token_layers(
    model: "CausalLM", token_ids: Sequence[int], also_tied: bool = False
) -> dict[str, list[int]]:
    """Return the layers whose rows are trained, as `trainable_token_indices` names them.

    Args:
        model: The base, with weights or without.
        token_ids: The rows.
        also_tied: Whether the head of a tied pair is named; PEFT wraps both for one name.
    """
    layers = [model.get_input_embeddings()]
    if also_tied or not model.config.tie_word_embeddings:
        layers.append(model.get_output_embeddings())
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    return {names[id(layer)]: list(token_ids) for layer in layers}


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
