"""A stranger's base, tokenizer or adapter runs no code and reaches no other folder."""

import json
import pickle
import shutil

import pytest
from command import lit_sft_in_process
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


@pytest.fixture
def base(tiny_base, tmp_path, monkeypatch):
    """A copy to spoil; whoever asks whether to run its code is told yes."""
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    shutil.copytree(tiny_base, tmp_path / "base")
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    (tmp_path / "base" / "evil.py").write_text(code + "class Evil: pass\n")
    return tmp_path / "base"


def edit(path, **changes) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def fit(base, *arguments: object):
    root = base.parent
    outcome = lit_sft_in_process(
        "fit",
        *("--model.base_model", base, "--data.task", "lit_sft.WordProblems"),
        *("--data.task.init_args.train_rows", 8, "--data.val_rows", 0, "--model.lora.r", 4),
        *("--trainer.default_root_dir", root / "run", "--trainer.max_steps", 1, *arguments),
    )
    assert not (root / "ran").exists(), "its code was run"
    assert "Traceback" not in outcome.stderr
    return outcome


def test_the_code_of_a_base_is_never_run(base):
    (base / "config.json").write_text("{}")
    edit(base / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    outcome = fit(base)
    assert outcome.status == 2
    assert "contains custom code which must be executed" in outcome.stderr


def test_the_code_beside_a_known_model_is_never_run(base):
    code = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Evil")
    edit(base / "config.json", auto_map=code)
    edit(base / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    assert fit(base).status == 0


def test_the_code_of_a_tokenizer_is_never_run(base):
    edit(
        base / "tokenizer_config.json",
        tokenizer_class="Evil",
        auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
    )
    fit(base)


@pytest.mark.parametrize("outside", ["../model.safetensors", "{root}/model.safetensors"])
def test_weights_outside_of_a_base_are_not_read(base, outside):
    outside = outside.format(root=base.parent)
    (base / "model.safetensors").rename(base.parent / "model.safetensors")
    weights = {"model.embed_tokens.weight": outside}
    edit(base / "model.safetensors.index.json", metadata={}, weight_map=weights)
    outcome = fit(base)
    assert outcome.status == 2
    assert f"names {outside!r}, which is not in its folder" in outcome.stderr
    assert "loading" not in outcome.stdout


def test_a_template_is_saved_under_no_name_of_its_own(base):
    templates = [
        {"name": "default", "template": (base / "tokenizer.json").read_text()[:9]},
        {"name": "../../../../escaped", "template": "x"},
    ]
    edit(base / "tokenizer_config.json", chat_template=templates)
    fit(base)
    assert list(base.parent.rglob("escaped*")) == []


@pytest.fixture
def adapter(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    lora = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    get_peft_model(model, lora).save_pretrained(base.parent / "adapter")
    return base.parent / "adapter"


def test_the_base_that_an_adapter_names_is_not_opened(base, adapter):
    edit(
        adapter / "adapter_config.json",
        base_model_name_or_path="../../../etc",
        auto_mapping={"base_model_class": "Evil", "parent_library": "evil"},
    )
    outcome = fit(base, "--model.adapter", adapter)
    assert outcome.status == 0, outcome.stderr
    written = json.loads((base.parent / "run" / "adapter" / "adapter_config.json").read_text())
    assert ".." not in written["base_model_name_or_path"]


class Bomb:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickled_adapter_is_never_opened(base, adapter):
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(str(base.parent / "ran"))))
    outcome = fit(base, "--model.adapter", adapter)
    assert outcome.status == 2
    assert "has no adapter_model.safetensors" in outcome.stderr


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickled_base_is_never_opened(base):
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(str(base.parent / "ran"))))
    outcome = fit(base)
    assert outcome.status == 2
    assert "is damaged, or would run code" in outcome.stderr
