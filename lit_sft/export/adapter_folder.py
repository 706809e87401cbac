"""The adapter folder: what PEFT and the Hub expect, written whole or not at all."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_sft.errors import SaveError
from lit_sft.export.card import ModelCard, format_card, name_source
from lit_sft.export.landing import (
    make_generation_config,
    write_provenance,
    write_surroundings,
)
from lit_sft.files import find_refusal, replace_folder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


def save_adapter(
    folder: Path, model: "PeftModel", tokenizer: "PreTrainedTokenizerBase", card: ModelCard
) -> None:
    """Write the adapter, the tokenizer with its chat template, and a model card.

    The bytes depend on the adapter and the run's settings alone: two runs that trained the same
    weights write the same files.

    Args:
        folder: Is replaced.
        model: In any mode, on any device.
        tokenizer: That the adapter was trained with.
        card: What the model card says.

    Raises:
        SaveError: If the disk is full or read-only; what was there before is still whole.
    """
    try:
        _save_adapter(folder, model, tokenizer, card)
    except Exception as error:  # safetensors and tokenizers have errors of their own
        refusal = find_refusal(error)
        if refusal is None:
            raise
        raise SaveError(
            f"the adapter {str(folder)!r} could not be written ({refusal}); the checkpoint is "
            "whole, and --ckpt_path last does what is left"
        ) from error


def _save_adapter(
    folder: Path, model: "PeftModel", tokenizer: "PreTrainedTokenizerBase", card: ModelCard
) -> None:
    config: Any
    for config in model.peft_config.values():
        if not isinstance(config.target_modules, str):  # a regular expression stays as it is
            config.target_modules = sorted(config.target_modules)
        config.base_model_name_or_path = name_source(card.base_model)
        config.inference_mode = True
    with replace_folder(folder) as staged:
        # "auto" would ask the Hub whether the vocabulary was resized; it never is here.
        model.save_pretrained(str(staged), save_embedding_layers=False)
        own = getattr(model, "generation_config", None)
        generation = make_generation_config(tokenizer, model.config, own)
        write_surroundings(staged, tokenizer, generation)
        write_provenance(staged, card)
        (staged / "README.md").write_text(format_card(card), encoding="utf-8")
