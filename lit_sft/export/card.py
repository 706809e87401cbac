"""The model card: what the weights are, how to use them, and what they measured."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import yaml

from lit_sft.paths import EMBEDDED_BASE, is_local

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
        metrics: What these weights measured, such as `val/loss`.
        steps: Optimizer steps after which they were taken.
        steps_taken: Of the whole run; None where that ended with these weights.
        monitor: The metric that they are the best by; None for the last weights.
        config: The resolved config of the run, as plain values.
    """

    base_model: str
    dataset: str
    base_sha256: str
    template_sha256: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0
    steps_taken: int | None = None
    monitor: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


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
only.{_say_best(card)}

```python
{_format_snippet(card).strip()}
```

The tokenizer carries the chat template that the adapter was trained with
(SHA-256 `{card.template_sha256}`), and `generation_config.json` the tokens that end an answer;
neither is read by `PeftModel` itself.{_say_base(card)}
{table}
## Config

```yaml
{yaml.safe_dump(_without_local_paths(card.config), sort_keys=False).strip()}
```
"""


def add_test_figures(card: str, record: Mapping[str, Any]) -> str:
    """Return a card with what `lit-sft test` has measured of its weights in the `model-index`.

    Args:
        card: As `format_card` wrote it; figures of the test split that it has are replaced.
        record: Of the test, as `lit_sft.callbacks.record_test` keeps it.
    """
    from huggingface_hub import EvalResult
    from huggingface_hub import ModelCard as HubCard

    read, about = HubCard(card), record["data"]
    data: Any = read.data
    kept = [x for x in data.eval_results or [] if x.dataset_split != about["split"]]
    data.model_name = data.model_name or "A LoRA adapter"
    data.eval_results = kept + [
        EvalResult(
            task_type="text-generation",
            dataset_type=about["dataset"],
            dataset_name=about["dataset"],
            dataset_split=about["split"],
            metric_type=name,
            metric_name=f"test/{name}",
            metric_value=round(value, 4),
        )
        for name, value in sorted(record["figures"].items())
        if "seconds" not in name
    ]
    _, _, body = card.removeprefix("---\n").partition("\n---\n")
    return f"---\n{data.to_yaml().strip()}\n---\n{body}"


def name_source(path: str) -> str:
    """Return a Hub id as it is, and of a local path the last part: the rest is private."""
    if path == EMBEDDED_BASE or not is_local(path):
        return path
    return Path(path).expanduser().resolve().name


def _say_best(card: ModelCard) -> str:
    if card.monitor is None:
        return ""
    value = f" ({card.metrics[card.monitor]:.4f})" if card.monitor in card.metrics else ""
    return (
        f" Of the {card.steps_taken or card.steps:,} steps of the run, these weights measured best "
        f"by `{card.monitor}`{value}."
    )


def _say_base(card: ModelCard) -> str:
    base = name_source(card.base_model)
    if card.base_model == EMBEDDED_BASE:
        return (
            f" The base `{base}` is no model of the Hub: it comes with the Python package\n"
            "`lit_sft`, which says where it lies."
        )
    if is_local(card.base_model):
        return (
            f" The base is a local folder, `{base}`: put its path, or the Hub id that\n"
            "it came from, in place of `path/to`."
        )
    return ""


def _format_snippet(card: ModelCard) -> str:
    base, embedded = name_source(card.base_model), card.base_model == EMBEDDED_BASE
    if embedded:
        named = f'locate("{base}")'
    else:
        named = f'"path/to/{base}"' if is_local(card.base_model) else f'"{base}"'
    imported = "\nfrom lit_sft.paths import locate" if embedded else ""
    return f"""
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig{imported}

adapter = "this repository or folder"
tokenizer = AutoTokenizer.from_pretrained(adapter)
base = AutoModelForCausalLM.from_pretrained({named})
model = PeftModel.from_pretrained(base, adapter)
model.base_model.model.generation_config = GenerationConfig.from_pretrained(adapter)

chat = [{{"role": "user", "content": "What is 2 + 3?"}}]
prompt = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**prompt, max_new_tokens=256)[0, prompt["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
"""


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
