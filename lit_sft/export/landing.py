"""What lies beside weights, so that they answer where they land as they did in training."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from lit_sft.data.prompts import find_stop_ids
from lit_sft.errors import SaveError
from lit_sft.export.base_files import BaseFiles
from lit_sft.export.card import ModelCard, describe_provenance
from lit_sft.files import find_refusal
from lit_sft.model.saved_adapter import PROVENANCE

AT_THE_END = "the checkpoint is whole, and --ckpt_path last does what is left"
"""What is told of the last files of a run."""


@contextmanager
def saying_refusals(what: str, left: str = AT_THE_END) -> Iterator[None]:
    """Raise `SaveError` for what the disk refuses.

    Args:
        what: Is written, and where.
        left: What there is then, and what to do.
    """
    try:
        yield
    except Exception as error:  # safetensors and tokenizers have errors of their own
        refusal = find_refusal(error)
        if refusal is None:
            raise
        raise SaveError(f"{what} could not be written ({refusal}); {left}") from error


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
