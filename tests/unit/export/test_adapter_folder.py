"""The model card, read back with the Hub's own parser."""

import huggingface_hub
import pytest
import yaml

from lit_sft.export.adapter_folder import ModelCard, format_card

HASH = "0123456789abcdef" * 4


@pytest.fixture
def card() -> ModelCard:
    return ModelCard(
        base_model="meta-llama/Llama-3.2-3B",
        dataset="openai/gsm8k",
        base_sha256=HASH,
        template_sha256=HASH,
        metrics={"train/loss": 0.5, "val/loss": 0.43216, "val/exact_match": 0.625},
        steps=1402,
        config={"model": {"learning_rate": 1e-4}, "trainer": {"default_root_dir": "runs/gsm8k"}},
    )


def test_metadata_round_trips_through_the_hub_parser(card):
    read = huggingface_hub.ModelCard(format_card(card))
    data = read.data.to_dict()
    assert data["base_model"] == "meta-llama/Llama-3.2-3B"
    assert data["datasets"] == ["openai/gsm8k"]
    assert data["library_name"] == "peft"
    assert {"lora", "sft"} <= set(data["tags"])
    figures = {result.metric_name: result.metric_value for result in read.data.eval_results}
    assert figures == {"val/loss": 0.4322, "val/exact_match": 0.625}
    assert huggingface_hub.ModelCardData(**data).to_dict() == data


def test_text_has_the_exact_config_and_the_hash(card):
    text = format_card(card)
    (block,) = (part for part in text.split("```") if part.startswith("yaml\n"))
    assert yaml.safe_load(block.removeprefix("yaml\n")) == card.config
    assert HASH in text
    assert "| `train/loss` | 0.5000 |" in text


def test_local_folders_are_named_and_never_located(tmp_path):
    base = tmp_path / "secret_place" / "my-base"
    base.mkdir(parents=True)
    places = [str(base), f"file://{base}", "~/secret_place/x", "../secret_place/x"]
    config = {"model": {"base_model": str(base)}, "data": {"paths": places}}
    text = format_card(
        ModelCard(str(base), str(base.with_name("rows.jsonl")), HASH, HASH, config=config)
    )
    assert "secret_place" not in text
    assert "LoRA adapter of my-base" in text
    data = huggingface_hub.ModelCard(text).data
    assert data.base_model is None
    assert data.datasets is None


def test_card_without_metrics_is_valid():
    text = format_card(ModelCard("owner/base", "WordProblems", HASH, HASH))
    assert huggingface_hub.ModelCard(text).data.eval_results is None
    assert "| metric |" not in text
