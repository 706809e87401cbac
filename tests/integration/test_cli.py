"""The main job through the command line, on the real data with the real tokenizer."""

import csv
import json
import re
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from command import ROOT, lit_sft, lit_sft_from_scratch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lit_sft.data.tokenizer import load_tokenizer

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def llama_base(shared, tmp_path_factory) -> Path:
    """A random Llama with the real tokenizer and vocabulary of 128,256, but two narrow layers."""
    folder = tmp_path_factory.mktemp("llama_base")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(shared / "llama-3.2-3b" / name, folder)
    real = json.loads((shared / "llama-3.2-3b" / "config.json").read_text())
    small = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**real | small)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recipe_run(llama_base, shared, tmp_path_factory):
    """The shipped recipe, with the base, the data's path and the step count overridden."""
    folder = tmp_path_factory.mktemp("runs")
    outcome = lit_sft(
        "fit",
        *("--config", "configs/gsm8k_qlora.yaml"),
        *("--model.base_model", llama_base),
        *("--data.task.init_args.path", shared / "gsm8k"),
        *("--data.val_rows", 16),
        *("--data.cache_dir", folder / "cache"),
        *("--trainer.max_steps", 3, "--trainer.precision", "32-true"),
        *("--trainer.val_check_interval", 3),
        *("--trainer.default_root_dir", folder / "run"),
        *("--trainer.logger", "false"),
        *("--model.max_new_tokens", 8),
    )
    assert outcome.status == 0, outcome.stderr
    return folder / "run", outcome


def test_the_recipe_runs_and_leaves_its_run_folder(recipe_run):
    root, _ = recipe_run
    with (root / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert all(float(row["train/loss"]) > 0 for row in rows[1:])
    assert [bool(row["val/exact_match"]) for row in rows] == [True, False, False, True]
    assert float(rows[-1]["val/loss"]) > 0
    assert (root / "checkpoints" / "last.ckpt").stat().st_size < 2_000_000  # no base inside
    assert yaml.safe_load((root / "config.yaml").read_text())["model"]["lora"]["r"] == 32
    assert {path.name for path in (root / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
    }


def test_what_the_run_printed_is_a_ledger_some_steps_and_a_summary(recipe_run):
    _, outcome = recipe_run
    assert outcome.stderr == ""
    assert re.search(r"^train +7,457 +7,457 +0 ", outcome.stdout, re.MULTILINE)
    assert "step 3/3  loss " in outcome.stdout
    assert re.search(r"val/exact_match +0\.0000 +0\.0000", outcome.stdout)
    assert outcome.stdout.count("wrote ") == 6


def test_the_adapter_loads_in_plain_peft_with_the_same_logits(recipe_run, llama_base):
    """Same weights in, same logits out: against the checkpoint's tensors put into a PEFT model."""
    root, _ = recipe_run
    base = AutoModelForCausalLM.from_pretrained(llama_base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, root / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(root / "adapter")
    messages = [{"role": "user", "content": "1 + 1?"}]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=False)
    logits = model(ids).logits
    with model.disable_adapter():
        assert not torch.allclose(logits, model(ids).logits)
    trained = torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
            parameter.data.copy_(trained[f"_model.{name}"])
    assert torch.equal(logits, model(ids).logits)


def test_the_adapter_folder_carries_the_training_template(recipe_run, llama_base):
    root, _ = recipe_run
    assert AutoTokenizer.from_pretrained(root / "adapter").chat_template == (
        load_tokenizer(str(llama_base)).chat_template
    )
    card = (root / "adapter" / "README.md").read_text()
    assert "SHA-256" in card
    assert str(root.parent) not in card
    assert str(llama_base.parent) not in card
    assert load_file(root / "adapter" / "adapter_model.safetensors")


def test_a_second_run_in_the_same_folder_is_refused_and_a_resumed_one_is_not(
    recipe_run, llama_base, shared
):
    root, _ = recipe_run
    again = ["fit", "--config", root / "config.yaml"]
    refused = lit_sft(*again)
    assert (refused.status, refused.stdout) == (2, "")
    assert "holds a run already" in refused.stderr
    resumed = lit_sft(*again, "--ckpt_path", "last", "--trainer.max_steps", 4)
    assert resumed.status == 0, resumed.stderr
    assert "step 4/4" in resumed.stdout


def test_validate_and_test_measure_the_base_as_it_is(recipe_run, llama_base, shared, tmp_path):
    rows = tmp_path / "rows"  # of the test split, all are answered
    rows.mkdir()
    (rows / "train.jsonl").symlink_to(shared / "gsm8k" / "train.jsonl")
    with (shared / "gsm8k" / "test.jsonl").open() as file:
        (rows / "test.jsonl").write_text("".join(islice(file, 40)))
    common = (
        *("--config", "configs/gsm8k_qlora.yaml", "--model.base_model", llama_base),
        *("--data.task.init_args.path", rows, "--data.val_rows", 16),
        *("--trainer.default_root_dir", tmp_path, "--trainer.logger", "false"),
        *("--trainer.precision", "32-true"),
        *("--data.cache_dir", recipe_run[0].parent / "cache", "--model.max_new_tokens", 4),
    )
    validated = lit_sft("validate", *common)
    assert validated.status == 0, validated.stderr
    assert re.search(r"val/loss\D+1[12]\.\d", validated.stdout)  # ln(128,256) is 11.8
    tested = lit_sft("test", *common, "--trainer.limit_test_batches", 2)
    assert tested.status == 0, tested.stderr
    assert re.search(r"test/loss\D+1[12]\.\d", tested.stdout)


def test_help_is_complete():
    outcome = lit_sft_from_scratch("--help")
    assert outcome.status == 0
    for command in ("fit", "validate", "test", "predict", "inspect"):
        assert f"  {command} " in outcome.stdout
    fit = lit_sft("fit", "--help")
    assert "--model.learning_rate" in fit.stdout
    assert "The peak of the schedule" in " ".join(fit.stdout.split())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_parsed_and_printed(config):
    outcome = lit_sft("fit", "--config", config, "--print_config")
    assert outcome.status == 0, outcome.stderr
    printed = yaml.safe_load(outcome.stdout)
    given = yaml.safe_load(config.read_text())
    assert printed["model"]["base_model"] == given["model"]["base_model"]
    assert printed["trainer"]["default_root_dir"] == f"runs/{config.stem}"


def test_the_recipe_is_the_recipe():
    outcome = lit_sft("fit", "--config", "configs/gsm8k_qlora.yaml", "--print_config")
    config = yaml.safe_load(outcome.stdout)
    model, data = config["model"], config["data"]
    assert model["base_model"] == "meta-llama/Llama-3.2-3B"
    assert model["quantization"] == {
        "format": "nf4",
        "double_quant": True,
        "weight_cache": "auto",
    }
    assert model["lora"] == {
        "r": 32,
        "alpha": 64,
        "dropout": 0.1,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "use_rslora": False,
        "loraplus_lr_ratio": 1.0,
        "use_dora": False,
        "init_weights": "default",
        "modules_to_save": [],
    }
    assert (model["optimizer"], model["learning_rate"]) == ("paged_adamw_32bit", 1e-4)
    assert (data["batch_size"], data["accumulate_grad_batches"]) == (4, 4)
    assert (data["max_length"], data["task"]["class_path"]) == (512, "lit_sft.GSM8K")
    trainer = config["trainer"]
    assert trainer["precision"] == "auto"
    callbacks = [callback["class_path"].rpartition(".")[2] for callback in trainer["callbacks"]]
    assert callbacks == ["GradientCheckpointing", "GenerationEval", "ModelCheckpoint"]
    assert trainer["callbacks"][2]["init_args"]["monitor"] == "val/exact_match"
    assert trainer["logger"]["class_path"] == "lit_sft.WandbRun"
