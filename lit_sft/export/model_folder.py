"""The folder of a model that was trained as a whole: what transformers and the Hub expect."""

from pathlib import Path
from typing import TYPE_CHECKING

from lit_sft.export.card import ModelCard, format_card
from lit_sft.export.landing import (
    make_generation_config,
    saying_refusals,
    write_provenance,
    write_surroundings,
)
from lit_sft.files import replace_folder
from lit_sft.model.base_model import read_base_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_model(
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    card: ModelCard,
) -> None:
    """Write the weights as safetensors, the tokenizer with its chat template, and a model card.

    The weights are those that were measured, in float32; `lit-sft export --to merged` writes them
    in the dtype of the published base.

    Args:
        folder: Is replaced.
        model: In any mode, on any device.
        tokenizer: That it was trained with.
        card: What the model card says.

    Raises:
        SaveError: If the disk is full or read-only; what was there before is still whole.
    """
    with saying_refusals(f"the model {str(folder)!r}"), replace_folder(folder) as staged:
        model.save_pretrained(str(staged))
        config = read_base_config(card.base_model)  # the model's own has no cache, for training
        config.dtype, config.architectures = model.dtype, [type(model).__name__]
        config.save_pretrained(staged)
        generation = make_generation_config(tokenizer, config, model.generation_config)
        write_surroundings(staged, tokenizer, generation)
        write_provenance(staged, card)
        (staged / "README.md").write_text(format_card(card), encoding="utf-8")
