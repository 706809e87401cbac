"""A run with a principal start leaves plain LoRA of twice the rank, which is what it trained."""

import json

import pytest
import torch
from command import lit_sft_in_process
from peft import PeftModel
from safetensors.torch import load_file
from small_run import fit_options

from lit_sft.cli.export import export_run
from lit_sft.export.trained_model import load_trained, load_trained_base
from lit_sft.export.trained_run import read_run
from lit_sft.model.saved_adapter import require_plain_lora
from lit_sft.model.trained import find_trained, load_source
from lit_sft.run.folder import RunFolder

TOKENS = torch.arange(3, 60)[None]


@pytest.fixture(scope="module")
def principal_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("principal") / "run"
    start = ("--model.lora.init_weights", "pissa_niter_4", "--model.lora.r", 8)
    small = ("--data.val_rows", 64, "--model.max_new_tokens", 8, "--model.learning_rate", 1e-3)
    outcome = lit_sft_in_process("fit", *fit_options("lit_sft/tiny", folder), *start, *small)
    assert outcome.status == 0, outcome.stderr
    return RunFolder(folder)


def logits_of(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def test_plain_peft_computes_what_was_trained(principal_run):
    config = json.loads((principal_run.adapter / "adapter_config.json").read_text())
    require_plain_lora("adapter", config)
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (16, 128, True)
    on_trained_base = PeftModel.from_pretrained(
        load_trained_base(read_run(principal_run.root)), principal_run.adapter
    )
    answering = load_source(find_trained(str(principal_run.root)), "cpu")
    logits = logits_of(on_trained_base)
    assert torch.allclose(logits_of(load_trained(principal_run.root)[0]), logits, atol=1e-3)
    with answering.autocast():
        found = logits_of(answering.model)
    assert (found - logits).abs().max() < 0.05 * logits.abs().max()


def test_exports_are_of_the_plain_form(principal_run, tmp_path):
    result = export_run(principal_run.root, "merged", tmp_path / "merged", dtype="float32")
    assert result.shortfalls == []
    export_run(principal_run.root, "adapter", tmp_path / "adapter")
    name = "adapter_model.safetensors"
    ours, theirs = load_file(tmp_path / "adapter" / name), load_file(principal_run.adapter / name)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[x], theirs[x]) for x in ours)


def test_a_checkpoint_of_it_is_measured(principal_run):
    config = ("--config", principal_run.config, "--trainer.limit_test_batches", 1)
    outcome = lit_sft_in_process("test", *config, "--ckpt_path", "last")
    assert outcome.status == 0, outcome.stderr
