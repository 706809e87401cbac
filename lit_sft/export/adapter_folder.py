"""The adapter folder: what PEFT, vLLM and the Hub expect, written whole or not at all."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_sft.export.model_card import ModelCard, format_card, name_source
from lit_sft.files import replace_folder
from lit_sft.model.saved_adapter import PROVENANCE

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

ADAPTER = "adapter"
"""The folder's name under the run's folder."""


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
    """
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
        provenance = {"base_model": name_source(card.base_model), "base_sha256": card.base_sha256}
        provenance["template_sha256"] = card.template_sha256
        (staged / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")
        (staged / "README.md").write_text(format_card(card), encoding="utf-8")
