"""`ddp`, `fsdp2` and `auto` from the command line: what a resume keeps, and what is refused."""

from pathlib import Path

import pytest
import torch
from command import lit_sft, lit_sft_in_process
from small_run import fit_options

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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model.lora", "null"], "model.lora: null trains all of it; use ddp"),
        (["--model.lora", "null", "--dry_run"], "model.lora: null trains all of it; use ddp"),
        (["--model.lora.use_dora", "true"], "model.lora.use_dora takes the norms of whole"),
        (["--model.lora.init_weights", "pissa"], "init_weights pissa decomposes whole weights"),
        (["--model.speed.compile", "true"], "its layers wait for other ranks, which model.speed"),
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
