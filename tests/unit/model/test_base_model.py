"""What lies beside a base's weights and would change what is loaded, without a word."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lit_sft.errors import InputError
from lit_sft.model.base_model import Quantization, load_base, read_base_config

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def base(tiny_base, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def put_adapter_into(folder: Path, base: Path) -> None:
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False),
    )
    model.peft_config["default"].base_model_name_or_path = "meta-llama/Llama-3.2-3B"
    model.save_pretrained(folder)


def test_an_adapter_in_the_folder_of_a_base(tiny_base, base):
    """transformers would put it on the base: other outputs, under the fingerprint of the base."""
    put_adapter_into(base, tiny_base)
    loaded = AutoModelForCausalLM.from_pretrained(base)
    assert any("lora" in name for name, _ in loaded.named_modules())  # so it is no idle guard
    with pytest.raises(InputError) as refusal:
        read_base_config(str(base))
    assert "holds an adapter" in str(refusal.value)
    assert "of 'meta-llama/Llama-3.2-3B'" in str(refusal.value)
    (base / "adapter_config.json").unlink()
    assert read_base_config(str(base)).model_type == "llama"


@pytest.mark.parametrize("config", ["{}", "{", "[]"])
def test_the_folder_of_an_adapter_alone(tmp_path, config):
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(InputError, match=r"^model\.base_model: .* holds an adapter \("):
        read_base_config(str(tmp_path))


@pytest.mark.parametrize("has_adapter", [False, True])
def test_a_base_of_the_hub_in_the_cache(tiny_base, has_adapter):
    folder = Path(os.environ["HF_HOME"]) / "hub" / "models--someone--base"
    snapshot = folder / "snapshots" / SHA
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(SHA)
    shutil.copy(tiny_base / "config.json", snapshot)
    if has_adapter:
        (snapshot / "adapter_config.json").write_text("{}")
    try:
        if not has_adapter:
            assert read_base_config("someone/base").model_type == "llama"
            return
        with pytest.raises(InputError, match=r"^model\.base_model: 'someone/base' holds an adap"):
            read_base_config("someone/base")
    finally:
        shutil.rmtree(folder)


def test_a_base_of_the_hub_that_is_not_there():
    with pytest.raises(InputError, match=r"^model\.base_model: no config of 'someone/nothing'"):
        read_base_config("someone/nothing")


def test_a_base_that_is_quantised_already(base, tmp_path):
    """transformers takes its format and its dtype of arithmetic in place of those of the run."""
    stored = Quantization(format="fp4", double_quant=False)
    load_base(str(base), stored, torch.bfloat16, torch.device("cpu")).save_pretrained(
        tmp_path / "q"
    )
    with pytest.raises(InputError, match=r"is quantised already \(bitsandbytes\)"):
        read_base_config(str(tmp_path / "q"))


def test_two_sets_of_weights_in_one_folder(base):
    """transformers reads the single file, and says nothing of the shards."""
    index = base / "model.safetensors.index.json"
    names = load_file(base / "model.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}))
    read_base_config(str(base))  # an index of the file itself
    save_file({x: w + 1 for x, w in names.items()}, base / "part.safetensors", {"format": "pt"})
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "part.safetensors")}))
    with pytest.raises(InputError, match=r"holds model\.safetensors, and shards beside it that "):
        read_base_config(str(base))


def test_a_config_that_names_another_file_of_weights(base):
    """transformers loads it, whatever lies under the usual name."""
    weights = load_file(base / "model.safetensors")
    other = {name: weight + 1 for name, weight in weights.items()}
    save_file(other, base / "other.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config["transformers_weights"] = "other.safetensors"
    (base / "config.json").write_text(json.dumps(config))
    loaded = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    assert torch.equal(loaded, other["model.embed_tokens.weight"])  # so it is no idle guard
    with pytest.raises(InputError, match=r"transformers_weights names 'other\.safetensors', which"):
        read_base_config(str(base))
