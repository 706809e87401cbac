"""The model card of an export, and the adapter's: measured figures only."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_sft.data.tokenizer import hash_template
from lit_sft.export.card import ModelCard, format_card, name_source
from lit_sft.export.certificate import Certificate
from lit_sft.export.trained_run import TrainedRun
from lit_sft.paths import is_local

USES = {
    "merged": (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("this repository or folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("this repository or folder")\n```\n\n'
        "or `vllm serve FOLDER`."
    ),
    # The base's own tokenizer has another template or none, and its own end tokens.
    "vllm": (
        "```bash\nvllm serve {base} --tokenizer FOLDER --generation-config FOLDER \\\n"
        "  --enable-lora --max-lora-rank {rank} --lora-modules tuned=FOLDER\n```"
    ),
    "gguf": "`llama-server --jinja -m FILE.gguf`, or `ollama create NAME -f Modelfile`.",
}


def format_export_card(run: TrainedRun, to: str, certificates: Sequence[Certificate]) -> str:
    """Return the card of an export.

    Args:
        run: As `read_run` returns it.
        to: The format.
        certificates: Of its files; none where nothing was compared.
    """
    base = name_source(run.base.base_model)
    if to == "adapter":
        return format_card(_adapter_card(run))
    metadata = ["pipeline_tag: text-generation", "tags: [lit-sft, sft]"]
    if not is_local(run.base.base_model):
        metadata.append(f"base_model: {run.base.base_model}")
    lines = "\n".join(f"- {one.file or to}: {one.describe()}" for one in certificates)
    proof = lines or "Not compared with the trained model."
    return (
        "---\n" + "\n".join(metadata) + f"\n---\n\n# {base}, fine-tuned ({to})\n\n"
        f"Fine-tuned for {run.step:,} optimizer steps with lit-sft.\n\n"
        + USES[to].format(base=base, rank=run.weights.rank)
        + "\n\nThe tokenizer carries the chat template of training (SHA-256 "
        f"`{hash_template(run.tokenizer)}`), and `generation_config.json` the tokens that end an "
        "answer.\n\n## Compared with the trained model\n\n" + proof + "\n"
    )


def read_figures(path: Path, step: int) -> dict[str, float]:
    """Return the figures of validation and training that a run has measured at a step.

    Args:
        path: The run's `metrics.csv`.
        step: Optimizer steps.
    """
    if not path.is_file():
        return {}
    found: dict[str, float] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row.get("step") in (str(step), str(step - 1)):
                found |= {
                    name: float(value)
                    for name, value in row.items()
                    if value and (name == "train/loss" or name.startswith("val/"))
                }
    return {name: value for name, value in found.items() if "seconds" not in name}


def _adapter_card(run: TrainedRun) -> ModelCard:
    config: dict[str, Any] = run.folder.read_config()
    task = config["data"].get("task") or {}
    arguments = task.get("init_args") or {}
    return ModelCard(
        base_model=run.base.base_model,
        dataset=str(arguments.get("path") or task.get("class_path", "")).rpartition(".")[2]
        if not arguments.get("path")
        else str(arguments["path"]),
        base_sha256=run.base.fingerprint(),
        template_sha256=hash_template(run.tokenizer),
        metrics=read_figures(run.folder.metrics, run.step),
        steps=run.step,
        config=config,
    )
