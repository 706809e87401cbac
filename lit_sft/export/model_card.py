"""The model card of an adapter, as the Hub reads it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import yaml

from lit_sft.paths import is_local


@dataclass(frozen=True)
class ModelCard:
    """What a model card says.

    Args:
        base_model: A Hub id or a folder; a folder is named, and left out of the metadata.
        dataset: A Hub id or a folder, likewise.
        template_sha256: Of the chat template that the adapter was trained with.
        metrics: The last values of the run's metrics, such as `val/loss`.
        steps: Optimizer steps taken.
        config: The resolved config of the run, as plain values.
    """

    base_model: str
    dataset: str
    template_sha256: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)


def format_card(card: ModelCard) -> str:
    """Return the card: YAML metadata, then Markdown. Local folders are reduced to their names."""
    base, dataset = _last_part(card.base_model), _last_part(card.dataset)
    metadata: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "text-generation"}
    if not is_local(card.base_model):
        metadata["base_model"] = card.base_model
    if not is_local(card.dataset):
        metadata["datasets"] = [card.dataset]
    metadata["tags"] = ["lit-sft", "lora", "sft"]
    rows = "\n".join(f"| `{name}` | {value:.4f} |" for name, value in sorted(card.metrics.items()))
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False).strip()}
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

| metric | value |
|---|---|
{rows}

## Config

```yaml
{yaml.safe_dump(_without_local_paths(card.config), sort_keys=False).strip()}
```
"""


def _without_local_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_local_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_local_paths(item) for item in value]
    return _last_part(value) if isinstance(value, str) else value


def _last_part(text: str) -> str:
    """Return the last part of a path that would tell where its owner keeps it."""
    return PurePath(text).name if text.startswith(("/", "~", "..")) else text
