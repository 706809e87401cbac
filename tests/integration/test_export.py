"""`lit-sft export`: each format of one short run, what is said of it, and what is refused."""

import contextlib
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import yaml
from command import ROOT, Outcome, lit_sft_from_scratch, lit_sft_in_process
from hub_server import serve_hub
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from small_run import fit_options, isolated
from transformers import AutoModelForCausalLM, AutoTokenizer

import lit_sft
from lit_sft.cli.export import run
from lit_sft.data.prompts import find_turn_end
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError
from lit_sft.model.trained import find_trained, load_source
from lit_sft.run.checkpoint_io import AtomicCheckpointIO
from lit_sft.run.folder import RunFolder

CHAT = [{"role": "user", "content": "Ann has 2 pens and gets 3 more. How many pens does she have?"}]
# The loss falls, so that the first of two is the largest: the best is not the last.
KEEPING = {"monitor": "val/loss", "mode": "max", "every_n_train_steps": 2, "filename": "b-{step}"}
FILES = {
    "adapter": {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"},
    "vllm": {"adapter_config.json", "adapter_model.safetensors", "certificate.json"},
    "merged": {"config.json", "generation_config.json", "model.safetensors", "certificate.json"},
    "gguf": {"tiny-lit-sft-f16.gguf", "tiny-lit-sft-q8_0.gguf", "Modelfile", "certificate.json"},
}


def export(*arguments, limit=None):
    """Run the command in this process; with a limit, no file can have more bytes."""
    stdout, stderr = io.StringIO(), io.StringIO()
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        patch.object(sys, "meta_path", list(sys.meta_path)),
    ):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit or former[0], former[1]))
            status = run(["export", *map(str, arguments)])
        except SystemExit as stop:
            status = int(stop.code or 0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)
    return Outcome(status, stdout.getvalue(), stderr.getvalue())


def refused(outcome, status=2):
    assert outcome.status == status, outcome
    assert outcome.stdout == ""
    (line,) = [x for x in outcome.stderr.splitlines() if not x.startswith("every option")]
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secret_place") / "run"
    keep = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": KEEPING}
    options = [
        *fit_options("lit_sft/tiny", folder),
        *("--data.val_rows", 64, "--model.max_new_tokens", 16, "--trainer.val_check_interval", 2),
        f"--trainer.callbacks={json.dumps([keep])}",
    ]
    outcome = lit_sft_in_process("fit", *options)
    assert outcome.status == 0, outcome.stderr
    return RunFolder(folder)


@pytest.fixture(scope="module")
def exports(short_run):
    """What each format came to, in its default place."""
    formats = [x for x in FILES if x != "gguf" or has_gguf()]
    return {to: export(short_run.root, "--to", to, "--min_equal", 0.5) for to in formats}


def has_gguf():
    try:
        import gguf  # noqa: F401
    except ImportError:
        return False
    return True


def copy_of(short_run, folder):
    """A run that was cut off before it left its adapter."""
    shutil.copytree(short_run.root, folder, ignore=shutil.ignore_patterns("export", "adapter"))
    return RunFolder(folder)


def read(folder, name):
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("to", FILES)
def test_an_export_is_whole_and_says_how_it_compares(short_run, exports, to):
    if to not in exports:
        pytest.skip("GGUF is written with the package gguf: lit-sft[export]")
    outcome, folder = exports[to], short_run.export / to
    assert outcome.status == 0, outcome
    assert outcome.stdout.startswith(f"wrote {folder}\n")
    names = {path.name for path in folder.iterdir()}
    assert names >= FILES[to] | {"README.md", "lit_sft.json"}
    assert read(folder, "lit_sft.json") == read(short_run.adapter, "lit_sft.json")
    card = ModelCard((folder / "README.md").read_text())
    assert "WordProblems" in card.text
    assert "max_steps: 4" in card.text
    if to == "adapter":
        assert "certificate.json" not in names, "nothing was changed that could be compared"
        return
    files = read(folder, "certificate.json")["files"]
    assert [x["file"] for x in files] == sorted(x for x in names if x.endswith(".gguf")) or [""]
    said = outcome.stdout.splitlines()[2:]
    if to == "gguf":  # the embedded base's tokenizer is one that no rule names
        assert "texts of held-out prompts, the tokens are the same" in said.pop()
        assert "the tokens are the same." in card.text
    for one, line in zip(files, said, strict=True):
        assert one["passed"] is True
        assert (one["prompts"], one["split"], one["step"]) == (64, "val", 2)
        assert one["tokens"] > 64
        assert 0 <= one["kl_mean"] <= one["kl_max"]
        assert one["exact_match"].keys() == {"trained", "exported"}
        assert one["base"] == ("original" if to == "vllm" else "trained")
        said = f"{one['equal_tokens']:.2%} of {one['tokens']:,} greedy tokens equal"
        assert said in line
        assert said in card.text
    assert len(card.data.eval_results) == len(files)


def test_nothing_exported_says_where_it_was_made_or_who_is_logged_in(short_run, exports):
    private = [b"secret_place", os.environ["HF_HOME"].encode(), str(Path.home()).encode() + b"/"]
    for to in exports:
        for path in (short_run.export / to).iterdir():
            content = path.read_bytes()
            assert not any(word in content for word in private), path


def test_the_adapter_is_to_the_byte_that_which_the_run_left(short_run, exports):
    left, exported = short_run.adapter, short_run.export / "adapter"
    wrote, which = exports["adapter"].stdout.splitlines()
    assert wrote == f"wrote {exported}"
    assert which.endswith("b-step=2.ckpt, after 2 steps, the best by val/loss")
    assert {x.name: x.read_bytes() for x in left.iterdir()} == {
        x.name: x.read_bytes() for x in exported.iterdir()
    }


def test_a_merged_folder_answers_as_the_run_does_by_the_lines_of_its_card(short_run, exports):
    folder = short_run.export / "merged"
    model, tokenizer = lit_sft.load_trained(short_run.root)
    asked = tokenizer.apply_chat_template(
        CHAT, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    expected = model.generate(**asked, max_new_tokens=40)
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    own = AutoTokenizer.from_pretrained(folder)
    assert own.chat_template == tokenizer.chat_template
    assert merged.generation_config.eos_token_id == model.generation_config.eos_token_id
    found = merged.generate(**asked, max_new_tokens=40)
    assert found.tolist() == expected.tolist()
    (script,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    script = script.replace("this repository or folder", str(folder))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(script, {})
    assert said.getvalue().strip()
    assert "<|" not in said.getvalue()


def test_the_lines_of_the_readme_load_merge_and_export(short_run, tmp_path):
    scripts = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (script,) = [text for text in scripts if "load_trained" in text]
    # In GGUF it is exported above.
    script = script.replace("runs/quickstart", str(short_run.root)).replace('"gguf"', '"vllm"')
    names = {}
    with contextlib.chdir(tmp_path):
        exec(script, names)
    assert isinstance(names["model"], PeftModel)
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "vllm" / "certificate.json").is_file()


def test_an_adapter_for_vllm_has_rows_of_tokens_as_plain_lora(short_run, exports):
    folder = short_run.export / "vllm"
    config = read(folder, "adapter_config.json")
    assert config["trainable_token_indices"] is None
    assert {"embed_tokens", "lm_head"} <= set(config["target_modules"])
    tensors = load_file(folder / "adapter_model.safetensors")
    assert not any("delta" in name for name in tensors)
    assert any("lora_embedding_A" in name for name in tensors)
    assert f"--max-lora-rank {config['r']}" in (folder / "README.md").read_text()


def test_gguf_holds_the_chat_template_and_ends_where_it_does(short_run, exports):
    gguf = pytest.importorskip("gguf", reason="GGUF is written with gguf: lit-sft[export]")
    folder, tokenizer = short_run.export / "gguf", load_tokenizer("lit_sft/tiny")
    fields = gguf.GGUFReader(folder / "tiny-lit-sft-q8_0.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    end = find_turn_end(tokenizer)
    assert fields["tokenizer.ggml.eos_token_id"].contents() == end
    assert fields["tokenizer.ggml.eot_token_id"].contents() == end
    assert fields["tokenizer.ggml.tokens"].contents()[end] == "<|eot_id|>"
    assert fields["general.architecture"].contents() == "llama"
    model = (folder / "Modelfile").read_text()
    assert model.startswith("FROM ./tiny-lit-sft-q8_0.gguf\nTEMPLATE ")
    assert 'PARAMETER stop "<|eot_id|>"' in model


@pytest.mark.parametrize(
    ("asked", "step", "best_by"),
    [(None, 2, "val/loss"), ("best", 2, "val/loss"), ("last", 4, None), ("{last}", 4, None)],
)
def test_the_checkpoint_that_is_asked_for_is_exported(short_run, tmp_path, asked, step, best_by):
    words = ["--checkpoint", asked.format(last=short_run.last_checkpoint)] if asked else []
    outcome = export(short_run.root, "--to", "adapter", "--output", tmp_path / "a", *words)
    assert outcome.status == 0, outcome
    said = read(tmp_path / "a", "lit_sft.json")
    assert (said["step"], said["steps_taken"], said["best_by"]) == (step, 4, best_by)
    names = {2: "b-step=2.ckpt", 4: "last.ckpt"}
    path = short_run.last_checkpoint.with_name(names[step])
    state = AtomicCheckpointIO().load_checkpoint(path)["state_dict"]
    saved = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert len(saved) == len(state)
    for name, tensor in state.items():
        assert tensor.equal(saved[name.removeprefix("_model.").replace(".default", "")])


def test_a_run_that_was_cut_off_has_its_adapter_from_an_export(short_run, tmp_path):
    cut_off = copy_of(short_run, tmp_path / "run")
    with pytest.raises(InputError, match=r"lit-sft export .* --to adapter, and chat "):
        find_trained(str(cut_off.root))
    assert export(cut_off.root, "--to", "adapter").status == 0
    exported = cut_off.export / "adapter"
    left = load_file(short_run.adapter / "adapter_model.safetensors")
    assert all(
        w.equal(left[n]) for n, w in load_file(exported / "adapter_model.safetensors").items()
    )
    assert load_source(find_trained(str(exported)), "cpu").stop_ids


def test_a_run_that_was_killed_before_its_last_checkpoint_gives_its_best(short_run, tmp_path):
    cut_off = copy_of(short_run, tmp_path / "run")
    cut_off.last_checkpoint.unlink()
    for words in ([], ["--checkpoint", "best"]):
        shutil.rmtree(cut_off.export, ignore_errors=True)
        outcome = export(cut_off.root, "--to", "adapter", *words)
        assert outcome.status == 0, outcome
        assert "b-step=2.ckpt, after 2 steps, the best by val/loss" in outcome.stdout
    line = refused(export(cut_off.root, "--to", "merged", "--checkpoint", "last"))
    assert "has no last.ckpt; it has " in line


def test_another_run_s_checkpoint_is_refused(short_run, tmp_path):
    """Its weights would be told with the figures of this one.

    One of this run that a machine with other memory has saved is not another's.
    """
    elsewhere, other = tmp_path / "kept.ckpt", tmp_path / "other.ckpt"
    shutil.copy(short_run.last_checkpoint.with_name("b-step=2.ckpt"), elsewhere)
    io = AtomicCheckpointIO()
    content = io.load_checkpoint(elsewhere)
    content["settings"] |= {"trainer.strategy": "fsdp2", "model.quantization.weight_cache": "none"}
    io.save_checkpoint(content, elsewhere)
    content["run"]["model.seed"] = 7
    io.save_checkpoint(content, other)
    words = (short_run.root, "--to", "adapter", "--output")
    assert export(*words, tmp_path / "a", "--checkpoint", elsewhere).status == 0
    line = refused(export(*words, tmp_path / "b", "--checkpoint", other))
    assert "is of another run than" in line


def test_a_run_that_goes_on_is_exported_and_it_is_said(short_run, tmp_path):
    running = copy_of(short_run, tmp_path / "run")
    command = "import sys; from pathlib import Path; from lit_sft.run.lock import hold_folder\n"
    command += "with hold_folder(Path(sys.argv[1])): print('holds', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", command, running.root],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == b"holds\n"
        outcome = export(running.root, "--to", "adapter", "--checkpoint", "last")
        process.kill()
    assert "last.ckpt, after 4 steps: the run is still training" in outcome.stdout
    shutil.rmtree(running.export)  # what the killed one has written of itself is there
    outcome = export(running.root, "--to", "adapter", "--checkpoint", "last")
    assert outcome.stdout.endswith("last.ckpt, after 4 steps\n")


def test_an_export_that_falls_short_ends_with_1_and_is_there_to_be_looked_at(short_run, tmp_path):
    words = ("--to", "merged", "--base", "original", "--max_kl", 1e-9, "--output", tmp_path / "m")
    outcome = export(short_run.root, *words)
    assert outcome.status == 1
    short, other = outcome.stderr.splitlines()
    assert short.startswith("it falls short: ")
    assert "the mean KL is " in short
    assert other.startswith("--to merged --base trained would give: 64 prompts in transformers")
    said = read(tmp_path / "m", "certificate.json")
    assert said["files"][0]["passed"] is False
    assert said["files"][0]["bound"]["kl_mean"] == 1e-9
    (on_trained,) = said["onto_trained_base"]
    assert on_trained["kl_mean"] < said["files"][0]["kl_mean"] / 10
    assert {x.name for x in (tmp_path / "m").iterdir() if x.is_dir()} == set()


@pytest.mark.parametrize("to", ["adapter", "merged", "gguf"])
def test_a_disk_that_fills_up_leaves_nothing_under_the_name(short_run, tmp_path, to):
    if to == "gguf" and not has_gguf():
        pytest.skip("GGUF is written with the package gguf: lit-sft[export]")
    words = ["--to", to, "--output", tmp_path / "out", *(["--prompts", 0] if to != "gguf" else [])]
    line = refused(export(short_run.root, *words, limit=200_000), status=1)
    assert re.search(
        r"could not be written \((File too large|No space left on device)\); nothing", line
    )
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_a_line(short_run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    (tmp_path / "empty").mkdir()
    unsaved = copy_of(short_run, tmp_path / "unsaved")
    shutil.rmtree(unsaved.last_checkpoint.parent)
    new = ("--output", tmp_path / "new", "--to")
    for words, says in {
        (tmp_path / "nowhere", *new, "adapter"): "there is no run folder",
        (tmp_path / "empty", *new, "adapter"): "is no run's folder",
        (short_run.adapter, *new, "merged"): "is an adapter's folder; name that of its run",
        (short_run.root, *new, "adapter", "--dtype", "float16"): "merges nothing; leave them out",
        (short_run.root, *new, "vllm", "--dtype", "float16"): "merges nothing; leave them out",
        (short_run.root, *new, "adapter", "--base", "original"): "merges nothing; leave them out",
        (short_run.root, *new, "merged", "--min_equal", 1.5): "a share from 0 to 1, got 1.5",
        (short_run.root, *new, "merged", "--max_kl", "nan"): "--max_kl must be 0 or more, got nan",
        (unsaved.root, *new, "adapter"): "has saved no checkpoint yet; train it with lit-sft fit",
        (short_run.root, "--to", "adapter", "--output", tmp_path / "full"): "holds something",
        (short_run.root, *new, "adapter", "--checkpoint", "x.ckpt"): "there is no file 'x.ckpt'",
        (short_run.root, *new, "onnx"): "invalid choice: 'onnx'",
        (short_run.root, *new, "merged", "--prompts", 8): "--prompts must be 64 or more",
        (short_run.root, *new, "gguf", "--prompts", 0): "tried on held-out prompts: leave",
        (short_run.root, *new, "merged", "--prompts", 600): "600 held-out prompts, the run has 512",
    }.items():
        if "gguf" not in words or has_gguf():
            assert says in refused(export(*words))
    assert [x.name for x in (tmp_path / "full").iterdir()] == ["mine.txt"]
    assert not (tmp_path / "new").exists()


def edit_config(folder, **sections):
    config = folder.read_config()
    for section, values in sections.items():
        config[section] |= values
    folder.config.write_text(yaml.safe_dump(config))


def test_a_config_that_was_changed_is_told_or_changes_nothing(short_run, tiny_base, tmp_path):
    other = copy_of(short_run, tmp_path / "other")
    edit_config(other, model={"base_model": str(tiny_base)})
    assert "was trained on another base than" in refused(export(other.root, "--to", "merged"))
    edit_config(other, model={"base_model": str(tmp_path / "gone")})
    assert "there is no folder" in refused(export(other.root, "--to", "merged"))
    edit_config(other, model={"base_model": "lit_sft/tiny", "lora": {"r": 4, "alpha": 1}})
    assert export(other.root, "--to", "adapter").status == 0
    assert read(other.export / "adapter", "adapter_config.json") == read(
        short_run.adapter, "adapter_config.json"
    )
    few = copy_of(short_run, tmp_path / "few")
    task = few.read_config()["data"]["task"]
    task["init_args"] |= {"test_rows": 5}
    edit_config(few, data={"val_rows": 4, "task": task})
    assert "64 held-out prompts, the run has 5" in refused(export(few.root, "--to", "merged"))


def test_a_checkpoint_of_more_than_lora_is_a_line(short_run, tmp_path):
    changed = copy_of(short_run, tmp_path / "run")
    for path in changed.last_checkpoint.parent.glob("*.ckpt"):
        saved = AtomicCheckpointIO().load_checkpoint(path)
        layer = "_model.base_model.model.model.layers.0.self_attn.q_proj"
        saved["state_dict"][f"{layer}.lora_C.default.weight"] = torch.ones(4)
        AtomicCheckpointIO().save_checkpoint(saved, path)
    line = refused(export(changed.root, "--to", "merged"))
    assert "q_proj.lora_C.default.weight', which is no part of LoRA or DoRA; merge it with" in line
    damaged = changed.last_checkpoint
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert "is damaged" in refused(export(changed.root, "--to", "adapter"))


def test_a_merged_export_is_pushed_from_its_folder(short_run, exports, tmp_path):
    folder, token = short_run.export / "merged", "hf_" + "x" * 34
    with serve_hub() as hub:
        done = subprocess.run(
            [sys.executable, "-m", "lit_sft", "push", str(folder), "me/merged"],
            cwd=ROOT, env=os.environ | isolated(tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=token),
            capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert hub.repositories["me/merged"] is True, "must be private"
        sent = hub.files["me/merged"]
    assert sent.keys() == {path.name for path in folder.iterdir()}
    assert sent["certificate.json"] == (folder / "certificate.json").read_bytes()
    assert sent["README.md"] == (folder / "README.md").read_bytes()


def test_the_command_says_nothing_but_what_it_did(short_run, tmp_path):
    words = ("--to", "merged", "--dtype", "float32", "--output", tmp_path / "m")
    outcome = lit_sft_from_scratch("export", short_run.root, *words)
    assert (outcome.status, outcome.stderr) == (0, "")
    wrote, _, compared = outcome.stdout.splitlines()
    assert wrote == f"wrote {tmp_path / 'm'}"
    assert "100.00% of" in compared


def test_the_run_of_a_script_is_loaded_merged_and_spoken_to(tiny_base, tmp_path):
    trainer = lit_sft.make_trainer(
        max_steps=2, default_root_dir=tmp_path / "run", accelerator="cpu", limit_val_batches=0
    )
    module = lit_sft.SFTModule(str(tiny_base), lora=lit_sft.Lora(r=4, alpha=8), learning_rate=1e-2)
    task = lit_sft.WordProblems(train_rows=20)
    trainer.fit(module, lit_sft.SFTDataModule(task, val_rows=0, batch_size=2))
    model, tokenizer = lit_sft.load_trained(tmp_path / "run", dtype=torch.float32)
    assert isinstance(model, PeftModel)
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")
    ids = ids["input_ids"] if not isinstance(ids, torch.Tensor) else ids
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    folder = lit_sft.merge_adapter(tmp_path / "run", tmp_path / "merged", dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-4)
    result = lit_sft.export_run(tmp_path / "run", "adapter", tmp_path / "adapter")
    assert (result.certificates, result.shortfalls) == ([], [])
    left = RunFolder(tmp_path / "run").adapter
    assert {x.name: x.read_bytes() for x in left.iterdir()} == {
        x.name: x.read_bytes() for x in result.folder.iterdir()
    }
    assert find_trained(str(tmp_path / "run")).base == str(tiny_base)
    with pytest.raises(InputError, match="it is the run of a script; export it without"):
        lit_sft.export_run(tmp_path / "run", "merged", tmp_path / "other")
