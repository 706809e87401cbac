"""What lies beside merged weights, so that they answer where they land as they did in training."""

from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from lit_sft.data.prompts import find_stop_ids
from lit_sft.export.base_files import BaseFiles
from lit_sft.paths import locate


def make_generation_config(base: BaseFiles, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Return the base's own, with the end tokens of the chat template of training.

    Args:
        base: Whose generation config is gone on from, where it has one.
        tokenizer: As `load_tokenizer` returns it.
    """
    try:
        config = GenerationConfig.from_pretrained(locate(base.base_model))
    except OSError:  # it has none
        config = GenerationConfig.from_model_config(base.config)
    text = base.config.get_text_config()
    config.eos_token_id = find_stop_ids(tokenizer, text, base.config, config)
    config.pad_token_id = tokenizer.pad_token_id
    config.use_cache = True
    return config


def write_surroundings(
    folder: Path, base: BaseFiles, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> None:
    """Write config, generation config and tokenizer into a folder of merged weights.

    Args:
        folder: That is being written.
        base: Whose config it is.
        tokenizer: As `load_tokenizer` returns it.
        dtype: Of the weights.
    """
    config = type(base.config).from_dict(base.config.to_dict())
    config.dtype = dtype
    config.architectures = [type(base.layers).__name__]
    config.save_pretrained(folder)
    make_generation_config(base, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
