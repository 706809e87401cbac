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
SNIPPET_OF_MODEL = """
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "this repository or folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")

chat = [{"role": "user", "content": "What is 2 + 3?"}]
prompt = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**prompt, max_new_tokens=256)[0, prompt["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
"""
"""How a whole model answers."""


@dataclass(frozen=True)
class ModelCard:
    """What a model card says.

    Args:
        base_model: A Hub id or a folder; a folder is named, and left out of the metadata.
        dataset: A Hub id or a folder, likewise.
        base_sha256: Of the base, as `lit_sft.model.base_model.fingerprint_base` computes it.
        template_sha256: Of the chat template of training.
        metrics: What these weights measured, such as `val/loss`.
        steps: Optimizer steps after which they were taken.
        steps_taken: Of the whole run; None where that ended with these weights.
        monitor: The metric that they are the best by; None for the last weights.
        config: The resolved config of the run, as plain values.
        is_whole: Whether all weights were trained, and none of them as an adapter.
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
    is_whole: bool = False


def format_card(card: ModelCard) -> str:
    """Return the card: YAML metadata, then Markdown. Local folders are reduced to their names."""
    dataset = name_source(card.dataset)
    metrics = "".join(
        f"| `{name}` | {value:.4f} |\n" for name, value in sorted(card.metrics.items())
    )
    table = f"\n| metric | value |\n|---|---|\n{metrics}" if metrics else ""
    trained, note = "Fine-tuned", "neither is read by `PeftModel` itself."
    if card.is_whole:
        trained, note = "All weights were trained", "both are read."
    return f"""---
{_format_metadata(card)}
---

# {_name_model(card)}

{trained} for {card.steps:,} optimizer steps on {dataset}, with the loss on the assistant's tokens
only.{_say_best(card)}

```python
{_format_snippet(card).strip()}
```

The tokenizer carries the chat template of training (SHA-256
`{card.template_sha256}`), and `generation_config.json` the tokens that end an answer;
{note}{"" if card.is_whole else _say_base(card)}
{table}{format_config(card)}"""


def format_config(card: ModelCard) -> str:
    """Return the section of a card with the config of its run, local paths left out."""
    if not card.config:
        return ""
    text = yaml.safe_dump(_without_local_paths(card.config), sort_keys=False).strip()
    return f"\n## Config\n\n```yaml\n{text}\n```\n"


def make_results(dataset: str, split: str, figures: Mapping[str, float]) -> list[Any]:
    """Return figures as a card's `model-index` has them.

    Args:
        dataset: What to call it.
        split: Of the data set.
        figures: By name, such as `val/exact_match`, whose last part is the metric.
    """
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=split,
            metric_type=name.partition("/")[2],
            metric_name=name,
            metric_value=round(value, 4),
        )
        for name, value in sorted(figures.items())
    ]


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


def choose_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """Return those of a run's figures that a card has: the losses and what answers were worth."""
    return {
        name: value
        for name, value in figures.items()
        if name == "train/loss" or (name.startswith("val/") and "seconds" not in name)
    }


def add_test_figures(card: str, record: Mapping[str, Any]) -> str:
    """Return a card with what `lit-sft test` has measured of its weights in the `model-index`.

    Args:
        card: As `format_card` wrote it; figures of the test split that it has are replaced.
        record: Of the test, as `lit_sft.callbacks.record_test` keeps it.
    """
    from huggingface_hub import ModelCard as HubCard

    read, about = HubCard(card), record["data"]
    data: Any = read.data
    kept = [x for x in data.eval_results or [] if x.dataset_split != about["split"]]
    data.model_name = data.model_name or "A fine-tuned model"
    figures = {f"test/{k}": v for k, v in record["figures"].items() if "seconds" not in k}
    data.eval_results = kept + make_results(about["dataset"], about["split"], figures)
    _, _, body = card.removeprefix("---\n").partition("\n---\n")
    return f"---\n{data.to_yaml().strip()}\n---\n{body}"


def name_source(path: str) -> str:
    """Return a Hub id as it is, and of a local path the last part: the rest is private."""
    if path == EMBEDDED_BASE or not is_local(path):
        return path
    return Path(path).expanduser().resolve().name


def _name_model(card: ModelCard) -> str:
    base = name_source(card.base_model)
    return f"{base}, fine-tuned" if card.is_whole else f"A LoRA adapter of {base}"


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
    if card.is_whole:
        return SNIPPET_OF_MODEL
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
    from huggingface_hub import ModelCardData

    measured = {name: x for name, x in card.metrics.items() if name.startswith("val/")}
    results = make_results(name_source(card.dataset), "validation", measured)
    metadata = ModelCardData(
        library_name="transformers" if card.is_whole else "peft",
        pipeline_tag="text-generation",
        base_model=None if is_local(card.base_model) else card.base_model,
        datasets=None if is_local(card.dataset) else [card.dataset],
        tags=[tag for tag in TAGS if tag != "lora" or not card.is_whole],
        model_name=_name_model(card) if results else None,
        eval_results=results or None,
    )
    return metadata.to_yaml().strip()


def _without_local_paths(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_local_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_local_paths(item) for item in value]
    if isinstance(value, str) and re.match(r"(file:/|/|~|\.\.)", value):
        return PurePath(value).name  # where its owner keeps it is nobody's business
    return value
