"""What lies beside weights, so that they answer where they land as they did in training."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from lit_sft.data.prompts import find_stop_ids
from lit_sft.export.base_files import BaseFiles
from lit_sft.export.card import ModelCard, describe_provenance
from lit_sft.model.saved_adapter import PROVENANCE


def make_generation_config(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, own: GenerationConfig | None
) -> GenerationConfig:
    """Return how a trained model answers: greedily, up to the end of a turn.

    A base names its own end token, which is often none that the chat template writes, and may ask
    for a way of drawing that is not what was measured.

    Args:
        tokenizer: As `load_tokenizer` returns it.
        config: Of the base.
        own: Of the base, where it has one.
    """
    make: Any = GenerationConfig  # without annotations
    made: GenerationConfig = make(
        do_sample=False,
        eos_token_id=find_stop_ids(tokenizer, config.get_text_config(), config, own),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return made


def write_surroundings(
    folder: Path, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig
) -> None:
    """Write the tokenizer, and how answers end.

    Args:
        folder: That is being written.
        tokenizer: As `load_tokenizer` returns it.
        generation: As `make_generation_config` returns it.
    """
    tokenizer.save_pretrained(folder)
    generation.save_pretrained(folder)


def write_provenance(folder: Path, card: ModelCard) -> None:
    """Write what the weights are, for machines."""
    provenance = json.dumps(describe_provenance(card), indent=2)
    (folder / PROVENANCE).write_text(provenance + "\n")


def write_config(folder: Path, base: BaseFiles, dtype: torch.dtype) -> None:
    """Write the config of merged weights.

    Args:
        folder: That is being written.
        base: Whose config it is.
        dtype: Of the weights.
    """
    config = type(base.config).from_dict(base.config.to_dict())
    config.dtype = dtype
    config.architectures = [type(base.layers).__name__]
    config.save_pretrained(folder)
