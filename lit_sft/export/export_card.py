"""The model card of an export, and the adapter's: measured figures only."""

from collections.abc import Sequence

from lit_sft.data.tokenizer import hash_template
from lit_sft.export.card import (
    SNIPPET_OF_MODEL,
    ModelCard,
    choose_figures,
    format_card,
    format_config,
    make_results,
    name_source,
)
from lit_sft.export.certificate import Certificate
from lit_sft.export.trained_run import TrainedRun
from lit_sft.paths import is_local
from lit_sft.run.best_checkpoint import read_figures
from lit_sft.run.origin import name_dataset

USES = {
    "merged": (f"```python\n{SNIPPET_OF_MODEL.strip()}\n```\n\nor `vllm serve FOLDER`."),
    # The base's own tokenizer has another template or none, and its own end tokens.
    "vllm": (
        "```bash\nvllm serve {base} --tokenizer FOLDER --generation-config FOLDER \\\n"
        "  --enable-lora --max-lora-rank {rank} --lora-modules tuned=FOLDER\n```"
    ),
    "gguf": "`llama-server --jinja -m FILE.gguf`, or `ollama create NAME -f Modelfile`.",
}
SPLITS = {"val": "validation", "test": "test"}
"""As a card calls them."""
LIBRARIES = {"merged": "transformers", "vllm": "peft", "gguf": "gguf"}


def make_card(run: TrainedRun) -> ModelCard:
    """Return what is said of a run's weights, as the run itself says it of its adapter."""
    return ModelCard(
        base_model=run.base.base_model,
        dataset=name_dataset(run.options),
        base_sha256=run.base.fingerprint,
        template_sha256=hash_template(run.tokenizer),
        metrics=choose_figures(read_figures(run.folder, run.step)),
        steps=run.step,
        steps_taken=run.steps_taken,
        monitor=run.best_by,
        config=run.folder.read_config(),
        is_whole=run.lora is None,
    )


def format_export_card(
    card: ModelCard,
    to: str,
    rank: int,
    certificates: Sequence[Certificate],
    remarks: Sequence[str] = (),
) -> str:
    """Return the card of an export.

    Args:
        card: As `make_card` returns it.
        to: The format.
        rank: Of the adapter.
        certificates: Of its files; none where nothing was compared.
        remarks: On its files.
    """
    if to == "adapter":
        return format_card(card)
    base = name_source(card.base_model)
    lines = "\n".join(f"- {one.file or to}: {one.describe()}" for one in certificates)
    return (
        f"---\n{_format_metadata(card, to, certificates)}\n---\n\n# {base}, fine-tuned ({to})\n\n"
        f"Fine-tuned for {card.steps:,} optimizer steps on {name_source(card.dataset)} with "
        "lit-sft, with the loss on the assistant's tokens only.\n\n"
        + USES[to].replace("{base}", base).replace("{rank}", str(rank))
        + "\n\nThe chat template is that of training (SHA-256\n"
        f"`{card.template_sha256}`), and so are the tokens that end an\nanswer.\n\n"
        "## Compared with the trained model\n\n"
        + (lines or "Not compared.")
        + "".join(f"\n\n{remark[0].upper()}{remark[1:]}." for remark in remarks)
        + "\n"
        + format_config(card)
    )


def _format_metadata(card: ModelCard, to: str, certificates: Sequence[Certificate]) -> str:
    """Return the metadata of an export; its results are what its own files have answered."""
    from huggingface_hub import ModelCardData

    results = [
        result
        for one in certificates
        if one.exact_match
        for result in make_results(
            name_source(card.dataset),
            SPLITS[one.split],
            {f"{one.file or to}/{one.graded_by}": one.exact_match["exported"]},
        )
    ]
    data = ModelCardData(
        library_name=LIBRARIES[to],
        pipeline_tag="text-generation",
        base_model=None if is_local(card.base_model) else card.base_model,
        datasets=None if is_local(card.dataset) else [card.dataset],
        tags=["lit-sft", "sft"],
        model_name=f"{name_source(card.base_model)}, fine-tuned" if results else None,
        eval_results=results or None,
    )
    return data.to_yaml().strip()
