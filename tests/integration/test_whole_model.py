"""A run that trains all weights: what it leaves, how it answers, and what it is exported to."""

import json

import pytest
import torch
from command import lit_sft_in_process
from small_run import fit_options
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_sft.cli.export import export_run
from lit_sft.cli.push import complete_card, find_folder
from lit_sft.errors import InputError
from lit_sft.export.trained_model import load_trained
from lit_sft.model.trained import find_trained, load_source
from lit_sft.run.checkpoint_io import AtomicCheckpointIO
from lit_sft.run.folder import RunFolder

WHOLE = ("--model.lora", "null", "--model.quantization.format", "none")
CHAT = [{"role": "user", "content": "Ann has 2 pens and gets 3 more. How many pens does she have?"}]


def options(folder):
    small = ("--data.val_rows", 64, "--data.task.test_rows", 16, "--model.max_new_tokens", 8)
    return [*fit_options("lit_sft/tiny", folder), *WHOLE, *small]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    generating = {"class_path": "lit_sft.GenerationEval", "init_args": {"every_n_steps": 4}}
    wanted = [*options(folder), f"--trainer.callbacks={json.dumps([generating])}"]
    outcome = lit_sft_in_process("fit", *wanted)
    assert outcome.status == 0, outcome.stderr
    return RunFolder(folder), outcome.stdout


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits_of(model, tokenizer):
    ids = tokenizer.apply_chat_template(CHAT, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_transformers_loads_what_was_trained(whole_run):
    folder, said = whole_run
    assert "training all 3,565,824 parameters, in float32" in said
    assert "val/exact_match" in said
    assert not folder.adapter.exists()
    assert f"wrote {folder.model}" in said
    state = AtomicCheckpointIO().load_checkpoint(folder.last_checkpoint)["state_dict"]
    model, base = load(folder.model), load(find_trained(str(folder.root)).base)
    assert model.dtype == torch.float32
    assert model.config.use_cache
    trained = {f"_model.{name}": parameter for name, parameter in model.named_parameters()}
    assert trained.keys() == state.keys()
    assert all(torch.equal(trained[name], state[name]) for name in state)
    assert base.num_parameters() == sum(x.numel() for x in state.values())
    assert model.generation_config.do_sample is False
    tokenizer = AutoTokenizer.from_pretrained(folder.model)
    ours, _ = load_trained(folder.root)
    torch.testing.assert_close(logits_of(model, tokenizer), logits_of(ours, tokenizer))


def test_the_card_is_of_a_model_and_its_lines_answer(whole_run, capsys):
    folder, _ = whole_run
    card = (folder.model / "README.md").read_text()
    assert "# lit_sft/tiny, fine-tuned\n\nAll weights were trained for" in card
    assert "library_name: transformers" in card
    assert "lora\n" not in card.partition("---\n\n")[0]
    assert "PeftModel" not in card
    script = card.split("```python\n")[1].split("```")[0]
    script = script.replace("this repository or folder", str(folder.model))
    exec(script.replace("max_new_tokens=256", "max_new_tokens=16"), {})
    assert capsys.readouterr().out.strip()


def test_it_is_tested_and_the_card_has_it(whole_run):
    folder, _ = whole_run
    config = ("--config", folder.config, "--ckpt_path", "last", "--trainer.limit_test_batches", 1)
    outcome = lit_sft_in_process("test", *config)
    assert outcome.status == 0, outcome.stderr
    assert find_folder(folder.root) == folder.model
    complete_card(folder.model)
    assert "test/" in (folder.model / "README.md").read_text()


def test_chat_answers_as_it_does(whole_run):
    folder, _ = whole_run
    for place in (folder.root, folder.model):
        source = find_trained(str(place))
        assert (source.adapter, source.base) == (None, str(folder.model))
    trained = load_source(source, "cpu")
    assert not any(parameter.requires_grad for parameter in trained.model.parameters())
    expected = logits_of(load(folder.model), trained.tokenizer)
    with trained.autocast():
        found = logits_of(trained.model, trained.tokenizer)
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_it_is_exported_merged_and_there_is_no_adapter(whole_run, tmp_path):
    folder, _ = whole_run
    result = export_run(folder.root, "merged", tmp_path / "out", dtype="float32")
    assert result.shortfalls == []
    assert result.certificates[0].equal_tokens > 0.99
    assert (tmp_path / "out" / "README.md").read_text().count("fine-tuned (merged)") == 1
    model = load(folder.model)
    for name, parameter in load(tmp_path / "out").named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
    for to in ("adapter", "vllm"):
        with pytest.raises(InputError, match="trained all weights, and has no adapter"):
            export_run(folder.root, to, tmp_path / to)


def test_a_second_run_is_refused_there(whole_run):
    folder, _ = whole_run
    folder.last_checkpoint.rename(folder.root / "kept")
    try:
        outcome = lit_sft_in_process("fit", *options(folder.root))
    finally:
        (folder.root / "kept").rename(folder.last_checkpoint)
    assert outcome.status == 2
    assert "holds a run already" in outcome.stderr
