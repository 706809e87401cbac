"""Attach a LoRA adapter to a base (Hu et al., 2021): to which layers, and to which token rows."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from lit_sft.errors import InputError, require
from lit_sft.model.target_layers import find_targets

if TYPE_CHECKING:
    from peft import PeftModel

    from lit_sft.model.loss import CausalLM


PISSA = re.compile(r"pissa(_niter_[1-9]\d*)?")


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
            (LoRA+, Hayou et al., 2024); 1 for the same. DoRA's magnitudes have it, too.
        use_dora: A trained magnitude for each output of an adapted layer, whose weight is
            normalised to it (DoRA, Liu et al., 2024). PEFT's own layers compute it, which is slower
            and takes more memory.
        init_weights: `pissa` begins with the principal part of each weight rather than with nothing
            (PiSSA, Meng et al., 2024), `pissa_niter_16` with one that is found in 16 iterations
            rather than by a whole decomposition; see `lit_sft.model.principal`. What a run leaves
            is plain LoRA of twice the rank.
        modules_to_save: The embedding and the head, by their names such as `embed_tokens` and
            `lm_head`, that are trained as a whole and saved with the adapter. A tied pair is
            trained as one, and one name will do.
    """

    r: int = 32
    alpha: int = 64
    dropout: float = 0.1
    target_modules: tuple[str, ...] | str = "attention"
    use_rslora: bool = False
    loraplus_lr_ratio: float = 1.0
    use_dora: bool = False
    init_weights: str = "default"
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.r > 0, f"lora.r must be positive, got {self.r}")
        require(self.alpha > 0, f"lora.alpha must be positive, got {self.alpha}")
        require(0 <= self.dropout < 1, f"lora.dropout must be in [0, 1), got {self.dropout}")
        require(bool(self.target_modules), "lora.target_modules must name at least one layer")
        require(
            self.loraplus_lr_ratio > 0,
            f"lora.loraplus_lr_ratio must be positive, got {self.loraplus_lr_ratio}",
        )

        require(
            self.init_weights == "default" or bool(PISSA.fullmatch(self.init_weights)),
            "lora.init_weights must be default, pissa, or pissa_niter_16 with any number, got "
            f"{self.init_weights!r}",
        )
        require(
            self.init_weights == "default" or not (self.use_dora or self.use_rslora),
            "lora.init_weights: pissa goes with neither lora.use_dora nor lora.use_rslora",
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
        use_dora=lora.use_dora,
        trainable_token_indices=name_token_layers(model, token_ids) if token_ids else None,
        **name_saved_layers(model, lora.modules_to_save),
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


def name_saved_layers(model: "CausalLM", wanted: Sequence[str]) -> dict[str, Any]:
    """Return what PEFT is to be told of layers that are trained as a whole.

    Args:
        model: The base, with weights or without.
        wanted: Names of its embedding and its head.

    Raises:
        InputError: If it names another layer.
    """
    if not wanted:
        return {}
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    known = [names[id(layer)] for layer in layers]
    others = [name for name in wanted if name not in known]
    require(
        not others,
        f"lora.modules_to_save: expected {' and '.join(known)}, the embedding and the head of the "
        f"model, got {', '.join(others)}; lora.target_modules names other layers",
    )
    if model.config.tie_word_embeddings:
        return {"modules_to_save": known[:1], "ensure_weight_tying": True}
    return {"modules_to_save": sorted(set(wanted))}


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
