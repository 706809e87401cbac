"""The adapter folder: what PEFT, vLLM and the Hub expect, written whole or not at all."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import yaml

from lit_sft.errors import SaveError
from lit_sft.files import find_refusal, replace_folder
from lit_sft.model.saved_adapter import PROVENANCE
from lit_sft.paths import EMBEDDED_BASE, is_local

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

TAGS = ("lit-sft", "lora", "sft")
"""Of an adapter on the Hub."""


@dataclass(frozen=True)
class ModelCard:
    """What a model card says.

    Args:
        base_model: A Hub id or a folder; a folder is named, and left out of the metadata.
        dataset: A Hub id or a folder, likewise.
        base_sha256: Of the base, as `lit_sft.model.base_model.fingerprint_base` computes it.
        template_sha256: Of the chat template that the adapter was trained with.
        metrics: The last values of the run's metrics, such as `val/loss`.
        steps: Optimizer steps taken.
        config: The resolved config of the run, as plain values.
    """

    base_model: str
    dataset: str
    base_sha256: str
    template_sha256: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)


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
        provenance = {"base_model": name_source(card.base_model), "base_sha256": card.base_sha256}
        provenance["template_sha256"] = card.template_sha256
        (staged / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")
        (staged / "README.md").write_text(format_card(card), encoding="utf-8")


def format_card(card: ModelCard) -> str:
    """Return the card: YAML metadata, then Markdown. Local folders are reduced to their names."""
    base, dataset = name_source(card.base_model), name_source(card.dataset)
    metrics = "".join(
        f"| `{name}` | {value:.4f} |\n" for name, value in sorted(card.metrics.items())
    )
    table = f"\n| metric | value |\n|---|---|\n{metrics}" if metrics else ""
    return f"""---
{_format_metadata(card)}
---

# A LoRA adapter of {base}

Fine-tuned for {card.steps:,} optimizer steps on {dataset}, with the loss on the assistant's tokens
only.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "this repository or folder")
```

The tokenizer in this repository carries the chat template that the adapter was trained with
(SHA-256 `{card.template_sha256}`).
{table}
## Config

```yaml
{yaml.safe_dump(_without_local_paths(card.config), sort_keys=False).strip()}
```
"""


def name_source(path: str) -> str:
    """Return a Hub id as it is, and of a local path the last part: the rest is private."""
    if path == EMBEDDED_BASE or not is_local(path):
        return path
    return Path(path).expanduser().resolve().name


def _format_metadata(card: ModelCard) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    dataset = name_source(card.dataset)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="validation",
            metric_type=name.removeprefix("val/"),
            metric_name=name,
            metric_value=round(value, 4),
        )
        for name, value in sorted(card.metrics.items())
        if name.startswith("val/")
    ]
    metadata = ModelCardData(
        library_name="peft",
        pipeline_tag="text-generation",
        base_model=None if is_local(card.base_model) else card.base_model,
        datasets=None if is_local(card.dataset) else [card.dataset],
        tags=list(TAGS),
        model_name=f"A LoRA adapter of {name_source(card.base_model)}" if results else None,
        eval_results=results or None,
    )
    return metadata.to_yaml().strip()


def _without_local_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_local_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_local_paths(item) for item in value]
    if isinstance(value, str) and re.match(r"(file:/|/|~|\.\.)", value):
        return PurePath(value).name  # where its owner keeps it is nobody's business
    return value
