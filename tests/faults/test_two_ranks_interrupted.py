"""Two interrupted processes: nobody hangs, one tells why, and the bits are the same."""

import os
from collections.abc import Iterator

import pytest
import torch
from command import lit_sft_in_process
from hub_server import serve_hub
from small_run import isolated
from test_interrupted_runs import kill, read_result, run

from lit_sft.run.checkpoint_io import AtomicCheckpointIO
from lit_sft.run.folder import RunFolder

TWO_RANKS = ("--trainer.devices", 2, "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu")


def run_two(folder, base, *arguments, callbacks=""):
    """Run to the end of both."""
    outcome = run(folder, base, *TWO_RANKS, *arguments, callbacks=callbacks, of_ranks=True)
    assert "Traceback" not in outcome.stderr
    assert outcome.stderr.count("error: ") + outcome.stderr.count("received: ") <= 1
    return outcome


def send(step: int, number: int, **others: int) -> str:
    arguments = "".join(f", {name}: {value}" for name, value in others.items())
    return (
        "    - {class_path: killers.Signal, init_args: "
        f"{{step: {step}, number: {number}{arguments}}}}}\n"
    )


def list_leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    """All that a checkpoint holds, by names such as `ckpt/settings/model.max_grad_norm`."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            yield from list_leaves(part, f"{name}/{key}")
    else:
        is_tensor = isinstance(value, torch.Tensor)
        yield name, (value.dtype, value.numpy().tobytes()) if is_tensor else value


@pytest.mark.timeout(1800)
def test_interrupted_in_every_way_equals_whole(tiny_base, tmp_path, whole_of_two, folder_of_two):
    """Six steps. A terminal's Ctrl-C reaches both ranks, a kill or a SIGTERM maybe one of them.

    Each time, the base is held in the other way: a checkpoint says so, and is equal but for that.
    """
    folder = tmp_path / "interrupted"
    callbacks = send(1, 2) + send(2, 9, rank=1) + send(4, 15, rank=1)
    statuses, told = [], []
    for strategy in ("ddp", "fsdp2", "ddp", "fsdp2"):
        options = ("--ckpt_path", "auto", "--trainer.strategy", strategy)
        outcome = run_two(folder, tiny_base, *options, callbacks=callbacks)
        statuses.append(outcome.status)
        told.append(outcome.stderr.splitlines()[-1:])
        if len(statuses) == 1:
            options = ("--config", "config.yaml", "--ckpt_path", "last")
            alone = lit_sft_in_process("fit", *options, cwd=folder)
    assert statuses in ([130, 1, 143, 0], [130, -9, 143, 0]), told
    assert "set data.accumulate_grad_batches=4" in alone.stderr
    assert alone.status == 2
    assert read_result(folder) == whole_of_two
    by_fsdp2, by_ddp = (
        dict(list_leaves(AtomicCheckpointIO().load_checkpoint(last), "ckpt"))
        for last in (RunFolder(x / "run").last_checkpoint for x in (folder, folder_of_two))
    )
    assert by_fsdp2.keys() == by_ddp.keys()
    assert {name: x for name, x in by_fsdp2.items() if x != by_ddp[name]} == {
        "ckpt/settings/trainer.strategy": "fsdp2",
        "ckpt/settings/model.quantization.weight_cache": "none",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal", "status"),
    [
        pytest.param(send(2, 15, times=2), 143, id="both twice"),
        pytest.param(send(2, 2, rank=0, times=2), 130, id="the first twice"),
        pytest.param(send(2, 9, rank=0), -9, id="the first is killed"),
        pytest.param(send(2, 15, rank=0), 143, id="the first once"),
    ],
)
def test_no_rank_outlives_the_other(tiny_base, tmp_path, signal, status):
    assert run_two(tmp_path, tiny_base, callbacks=signal).status == status
    assert run_two(tmp_path, tiny_base, "--ckpt_path", "auto").status == 0


def test_a_refusal_that_only_the_first_rank_gets_ends_both(tiny_base, tmp_path, monkeypatch):
    upload = "    - {class_path: lit_sft.HubUpload, init_args: {repo_id: me/readonly}}\n"
    with serve_hub() as hub:
        hub.faults["me/readonly create"] = iter([403])
        for name, value in isolated(tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN="hf_x").items():
            monkeypatch.setitem(os.environ, name, value)
        outcome = run_two(tmp_path / "work", tiny_base, callbacks=upload)
    assert outcome.status == 2, outcome.stderr
    assert "HubUpload: 'me/readonly' cannot be written" in outcome.stderr
    assert "training" not in outcome.stdout


@pytest.mark.slow
def test_an_evaluation_that_one_rank_has_no_memory_for_is_left_out_by_both(tiny_base, tmp_path):
    full = kill("OutOfMemoryInEvaluation", 4)
    outcome = run_two(tmp_path, tiny_base, callbacks=full)
    assert outcome.status == 0, outcome.stderr
    assert "evaluation left out after step 4: another rank is out of memory" in outcome.stderr
    rows = {row["step"]: row["val/exact_match"] for row in read_result(tmp_path)[1]}
    assert (bool(rows["0"]), bool(rows["4"]), bool(rows["6"])) == (True, False, True)
