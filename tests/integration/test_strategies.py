"""`ddp`, `fsdp2` and `auto` from the command line: what a resume keeps, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from command import lit_sft, lit_sft_in_process
from small_run import fit_options
from test_dry_run import read_bytes
from transformers import LlamaConfig

from lit_sft.run.folder import RunFolder

TWO = ("--trainer.devices", 2, "--trainer.strategy")


def go_on(base: Path, folder: Path, strategy: str, steps: int, *arguments: object) -> str:
    """Train two ranks up to a step; return all that they print."""
    options = [*fit_options(base, folder, steps), "--ckpt_path", "auto", *TWO, strategy]
    outcome = lit_sft("fit", *options, *arguments, of_ranks=True)
    assert outcome.status == 0, outcome.stderr
    return outcome.stdout + outcome.stderr


@pytest.mark.timeout(600)
def test_auto_keeps_what_the_run_had_and_a_change_is_told(tiny_base, tmp_path):
    """The third goes on from a run that says of itself that it compiled, as on a card."""
    first = go_on(tiny_base, tmp_path, "fsdp2", 1)
    assert "strategy" not in first
    second = go_on(tiny_base, tmp_path, "auto", 2)
    assert second.count("free; the run goes on as it did, by fsdp2") == 1
    assert "trainer.strategy was" not in second
    last = RunFolder(tmp_path).last_checkpoint
    saved = torch.load(last, weights_only=True)
    saved["settings"]["trainer.strategy"] = "ddp"
    saved["run"]["model.speed.compile"] = True
    torch.save(saved, last)
    third = go_on(tiny_base, tmp_path, "fsdp2", 3, "--model.speed.compile", "false")
    assert third.count("trainer.strategy was ddp, is now fsdp2") == 1
    assert third.count("model.speed.compile was True, is now False: the run goes on with") == 1


@pytest.mark.timeout(600)
def test_what_fsdp2_has_trained_is_tested_answered_and_merged(tiny_base, tmp_path):
    """By `fsdp2`, and by one process, which gives the same answers."""
    go_on(tiny_base, tmp_path, "fsdp2", 1)
    options = [*fit_options(tiny_base, tmp_path)[1:], "--data.task.test_rows=3", "--ckpt_path=last"]
    options += ["--model.max_new_tokens=4"]
    shared = lit_sft("predict", *options, *TWO, "fsdp2", of_ranks=True)
    alone = lit_sft_in_process("predict", *options)
    assert (shared.status, alone.status) == (0, 0), shared.stderr + alone.stderr
    kept, last = (tmp_path / name for name in ("predictions-1.jsonl", "predictions.jsonl"))
    assert kept.read_bytes() == last.read_bytes()
    tested = lit_sft("test", *options, *TWO, "fsdp2", of_ranks=True)
    assert (tested.status, list((tmp_path / "measured").iterdir()) != []) == (0, True), (
        tested.stderr
    )
    merged = ("--to", "merged", "--output", tmp_path / "merged", "--prompts", 0)
    outcome = lit_sft("export", tmp_path, *merged)
    assert (outcome.status, (tmp_path / "merged" / "config.json").exists()) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model.lora", "null"], "model.lora: null trains all of it; use ddp"),
        (["--model.lora", "null", "--dry_run"], "model.lora: null trains all of it; use ddp"),
        (["--model.lora.use_dora", "true"], "model.lora.use_dora takes the norms of whole"),
        (["--model.lora.init_weights", "pissa"], "init_weights pissa decomposes whole weights"),
    ],
)
def test_what_fsdp2_cannot_do_is_refused_before_any_row_is_read(
    tiny_base, tmp_path, arguments, says
):
    options = [*fit_options(tiny_base, tmp_path / "run"), *TWO, "fsdp2", *arguments]
    outcome = lit_sft_in_process("fit", *options)
    assert (outcome.status, outcome.stderr.count("\n")) == (2, 1), outcome.stderr
    assert outcome.stderr.startswith("error: trainer.strategy: fsdp2 shards a frozen base, and ")
    assert says in outcome.stderr
    assert "split " not in outcome.stdout


@pytest.fixture
def by_fsdp2(tmp_path) -> Path:
    """What is looked at of a checkpoint before any row is read."""
    content = {"pytorch-lightning_version": "2.6.0", "global_step": 1, "state_dict": {}, "run": {}}
    torch.save(content | {"settings": {"trainer.strategy": "fsdp2"}}, tmp_path / "by_fsdp2.ckpt")
    return tmp_path / "by_fsdp2.ckpt"


def test_what_fsdp2_cannot_do_is_refused_of_a_run_that_auto_goes_on_by_it(
    tiny_base, tmp_path, by_fsdp2
):
    options = [*fit_options(tiny_base, tmp_path / "run"), *TWO, "auto", "--ckpt_path", by_fsdp2]
    outcome = lit_sft_in_process("fit", *options, "--model.lora.use_dora", "true")
    assert (outcome.status, outcome.stderr.count("\n")) == (2, 1), outcome.stderr
    assert "trainer.strategy: auto goes on as the run did, by fsdp2, which sha" in outcome.stderr
    assert "split " not in outcome.stdout


def plan(base: Path | str, folder: Path, strategy: str, *arguments: object):
    options = [*fit_options(base, folder / "run"), *TWO, strategy, "--dry_run", *arguments]
    return lit_sft_in_process("fit", *options, "--model.quantization.weight_cache", "none")


def test_a_dry_run_says_which_strategy_auto_is_and_plans_the_share_of_a_device(tmp_path):
    whole, shared = (plan("lit_sft/tiny", tmp_path, strategy) for strategy in ("auto", "fsdp2"))
    assert whole.stdout.count("strategy ddp: the base takes ") == 1
    for part, ratio in (("4-bit weights and scales", 2), ("the rest of the base", 1)):
        taken = [read_bytes(outcome.stdout, part) for outcome in (whole, shared)]
        assert taken[0] == pytest.approx(ratio * taken[1], rel=0.2), part


def test_a_measurement_is_refused_where_auto_comes_to_fsdp2(tiny_base, tmp_path):
    """Its config says a size that no device holds; its weights are not looked at."""
    shutil.copytree(tiny_base, tmp_path / "large")
    config = LlamaConfig.from_pretrained(tiny_base)
    config.update({"hidden_size": 2**15, "intermediate_size": 2**17, "num_hidden_layers": 400})
    config.save_pretrained(tmp_path / "large")
    outcome = plan(tmp_path / "large", tmp_path, "auto", "measure")
    assert (outcome.status, outcome.stderr.count("\n")) == (2, 1), outcome.stderr
    assert "error: --dry_run measure takes its steps on one device, and" in outcome.stderr
    assert outcome.stdout.count("strategy fsdp2: the base takes ") == 1
    assert "split " not in outcome.stdout


def test_a_dry_run_plans_the_strategy_that_the_run_would_go_on_by(tiny_base, tmp_path, by_fsdp2):
    outcome = plan(tiny_base, tmp_path, "auto", "measure", "--ckpt_path", by_fsdp2)
    assert "error: --dry_run measure takes its steps on one device, and" in outcome.stderr
    assert outcome.stdout.count("free; the run goes on as it did, by fsdp2") == 1
    missing = plan(tiny_base, tmp_path, "auto", "--ckpt_path", "last")
    assert (missing.status, "there is no checkpoint" in missing.stderr) == (2, True)
    assert not (tmp_path / "run").exists()
