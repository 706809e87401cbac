"""The adapter's folder on a full disk; the model card, read back with the Hub's own parser."""

import resource
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import SaveError
from lit_sft.export.adapter_folder import save_adapter
from lit_sft.export.card import ModelCard, format_card

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


LARGEST = {
    "adapter_model.safetensors": (16, {}),
    "tokenizer.json": (1, {}),
    "README.md": (1, {"data": {"sources": [f"source number {i}" for i in range(1500)]}}),
}
"""The rank of an adapter and a run's config that make one file of the folder the largest."""


@pytest.fixture(scope="module", params=LARGEST)
def saved(tiny_base, tmp_path_factory, request):
    """A model with an adapter, its tokenizer and a card; the bytes of the largest file of them."""
    rank, config = LARGEST[request.param]
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    model = get_peft_model(base, LoraConfig(r=rank, target_modules=["q_proj", "v_proj"]))
    card = ModelCard("owner/base", "rows", HASH, HASH, config=config)
    parts = (model, load_tokenizer(str(tiny_base)), card)
    folder = tmp_path_factory.mktemp("size") / "adapter"
    save_adapter(folder, *parts)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert max(sizes, key=sizes.get) == request.param
    return parts, max(sizes.values())


def read_files(folder: Path) -> dict[str, bytes] | None:
    return {x.name: x.read_bytes() for x in folder.iterdir()} if folder.exists() else None


@pytest.mark.parametrize("room", [0, 1, 100, 5000, 20000, -4097, -4096, -1])
@pytest.mark.parametrize("is_first", [False, True])
def test_a_disk_that_is_full_at_any_byte_leaves_the_former_folder(saved, tmp_path, room, is_first):
    """A negative room is counted from the end of the largest file."""
    parts, size = saved
    room = min(room, size - 1) if room >= 0 else size + room
    folder = tmp_path / "adapter"
    if not is_first:
        save_adapter(folder, *parts)
        (folder / "mark").write_text("of the former")
    before = read_files(folder)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, former[1]))
    try:
        with pytest.raises(SaveError) as raised:
            save_adapter(folder, *parts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert str(raised.value) == (
        f"the adapter {str(folder)!r} could not be written (File too large); the checkpoint is "
        "whole, and --ckpt_path last does what is left"
    )
    assert read_files(folder) == before
    assert list(tmp_path.iterdir()) == ([] if is_first else [folder])
