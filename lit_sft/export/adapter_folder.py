"""The adapter folder: what PEFT and the Hub expect, written whole or not at all."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_sft.data.prompts import find_stop_ids
from lit_sft.errors import SaveError
from lit_sft.export.card import ModelCard, format_card, name_source
from lit_sft.files import find_refusal, replace_folder
from lit_sft.model.saved_adapter import PROVENANCE

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedTokenizerBase


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
        tokenizer.save_pretrained(staged)
        make_generation_config(model, tokenizer).save_pretrained(staged)
        provenance = json.dumps(describe_provenance(card), indent=2)
        (staged / PROVENANCE).write_text(provenance + "\n")
        (staged / "README.md").write_text(format_card(card), encoding="utf-8")


def make_generation_config(
    model: "PeftModel", tokenizer: "PreTrainedTokenizerBase"
) -> "GenerationConfig":
    """Return how the adapter answers: greedily, up to the end of a turn.

    A base names its own end token, which is often none that the chat template writes.
    """
    from transformers import GenerationConfig

    config: Any = model.config
    make: Any = GenerationConfig  # without annotations
    stop_ids = find_stop_ids(
        tokenizer, config.get_text_config(), config, getattr(model, "generation_config", None)
    )
    made: GenerationConfig = make(
        do_sample=False,
        eos_token_id=stop_ids,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return made


def describe_provenance(card: ModelCard) -> dict[str, Any]:
    """Return what the weights are: their base, their step, and what they measured."""
    return {
        "base_model": name_source(card.base_model),
        "base_sha256": card.base_sha256,
        "template_sha256": card.template_sha256,
        "step": card.steps,
        "steps_taken": card.steps if card.steps_taken is None else card.steps_taken,
        "best_by": card.monitor,
        "metrics": dict(sorted(card.metrics.items())),
    }
