"""The adapter folder: what PEFT and the Hub expect, written whole or not at all."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_sft.export.card import ModelCard, format_card, name_source
from lit_sft.export.landing import (
    make_generation_config,
    saying_refusals,
    write_provenance,
    write_surroundings,
)
from lit_sft.files import replace_folder
from lit_sft.model.principal import ADAPTER, join_starts, read_starts
from lit_sft.model.saved_adapter import CONFIG, WEIGHTS

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
    with saying_refusals(f"the adapter {str(folder)!r}"):
        _save_adapter(folder, model, tokenizer, card)


def _save_adapter(
    folder: Path, model: "PeftModel", tokenizer: "PreTrainedTokenizerBase", card: ModelCard
) -> None:
    config: Any
    for config in model.peft_config.values():
        if not isinstance(config.target_modules, str):  # a regular expression stays as it is
            config.target_modules = sorted(config.target_modules)
        if config.modules_to_save:
            config.modules_to_save = sorted(config.modules_to_save)
        config.base_model_name_or_path = name_source(card.base_model)
        config.inference_mode = True
    with replace_folder(folder) as staged:
        # "auto" would ask the Hub whether the vocabulary was resized; it never is here.
        model.save_pretrained(str(staged), save_embedding_layers=False)
        if starts := read_starts(model):
            _make_plain(staged, starts)
        own = getattr(model, "generation_config", None)
        generation = make_generation_config(tokenizer, model.config, own)
        write_surroundings(staged, tokenizer, generation)
        write_provenance(staged, card)
        (staged / "README.md").write_text(format_card(card), encoding="utf-8")


def _make_plain(folder: Path, starts: dict[str, Tensor]) -> None:
    """Rewrite an adapter that began with a part of the base's weights as plain LoRA.

    Args:
        folder: As PEFT wrote it.
        starts: As `read_starts` returns them.
    """
    on_disk = {name.replace(f".{ADAPTER}.", "."): x.cpu() for name, x in starts.items()}
    tensors = join_starts(load_file(folder / WEIGHTS), on_disk)
    save_file({k: x.contiguous() for k, x in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {name: 2 * config[name] for name in ("r", "lora_alpha")}
    config["init_lora_weights"] = True
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
