"""A run that was cut off when its last step was done leaves what an uninterrupted one leaves."""

import json
import re
import shutil

import pytest
from safetensors.torch import load_file
from test_interrupted_runs import read_result, run

from lit_sft.run.checkpoint_io import AtomicCheckpointIO
from lit_sft.run.folder import RunFolder

slow = pytest.mark.slow
LIMITS = {
    "steps": (("--trainer.max_steps", 6), ("--trainer.max_steps", 10), 10),
    "epochs": (("--trainer.max_epochs", 1), (), 12),
}
"""The options of a run of 6 steps, of the longer run that it is extended to, and its steps."""


def read_card(folder) -> tuple[str, str]:
    """The steps and the figures of a model card."""
    card = (folder / "run" / "adapter" / "README.md").read_text()
    steps = re.search(r"Fine-tuned for \d+ optimizer steps", card)
    return steps.group(), card[card.index("| metric") : card.index("## Config")]


@pytest.fixture(scope="module", params=LIMITS)
def extended(tiny_base, tmp_path_factory, request):
    """A run of 6 steps, and the same one extended without an interruption."""
    root = tmp_path_factory.mktemp("extended")
    short, long, _ = LIMITS[request.param]
    assert run(root / "short", tiny_base, *short).status == 0
    shutil.copytree(root / "short", root / "long", symlinks=True)
    outcome = run(root / "long", tiny_base, "--ckpt_path", "last", *long)
    assert outcome.status == 0, outcome.stderr
    return request.param, root, outcome.stdout


@pytest.mark.parametrize("end", ["SIGTERM", pytest.param("SIGINT", marks=slow), "SIGKILL"])
def test_an_extended_run_cut_off_at_its_end_leaves_the_adapter_it_ended_with(
    tiny_base, tmp_path, extended, end
):
    limit, root, said = extended
    whole, (_, long, steps) = root / "long", LIMITS[limit]
    number, status = {"SIGTERM": (15, 143), "SIGINT": (2, 130), "SIGKILL": (9, -9)}[end]
    signal = f"{{class_path: killers.Signal, init_args: {{step: {steps - 1}, number: {number}}}}}"
    killer = f"    - {'killers.KillAtTheEnd' if end == 'SIGKILL' else signal}\n"
    going_on = ("--ckpt_path", "last", *long)
    shutil.copytree(root / "short", tmp_path, symlinks=True, dirs_exist_ok=True)
    cut_off = run(tmp_path, tiny_base, *going_on, callbacks=killer)
    assert cut_off.status == status, cut_off.stderr
    last = AtomicCheckpointIO().load_checkpoint(RunFolder(tmp_path / "run").last_checkpoint)
    assert last["global_step"] == steps
    resumed = run(tmp_path, tiny_base, *going_on, callbacks=killer)
    assert resumed.status == 0, resumed.stderr
    assert read_result(tmp_path) == read_result(whole)
    assert read_card(tmp_path) == read_card(whole)
    generations = "run/logs/generations.jsonl"
    assert (tmp_path / generations).read_bytes() == (whole / generations).read_bytes()
    assert resumed.stdout.partition("before ")[2] == said.partition("before ")[2]


BEST = (
    "    - class_path: lightning.pytorch.callbacks.ModelCheckpoint\n"
    "      init_args: {monitor: train/loss, mode: max, every_n_train_steps: 2}\n"
)
"""By the highest loss, so that it is an early one."""


@pytest.fixture(scope="module")
def best(tiny_base, tmp_path_factory):
    """A run that leaves its best adapter, without an interruption."""
    folder = tmp_path_factory.mktemp("best")
    assert run(folder, tiny_base, callbacks=BEST).status == 0
    return folder


@pytest.mark.parametrize("end", [pytest.param("SIGTERM", marks=slow), "SIGKILL"])
def test_a_run_cut_off_at_its_end_leaves_the_adapter_that_was_best(tiny_base, tmp_path, best, end):
    signal = "{class_path: killers.Signal, init_args: {step: 11, number: 15}}"
    killer = f"    - {'killers.KillAtTheEnd' if end == 'SIGKILL' else signal}\n"
    assert run(tmp_path, tiny_base, callbacks=BEST + killer).status != 0
    assert not (tmp_path / "run" / "adapter").exists()
    resumed = run(tmp_path, tiny_base, "--ckpt_path", "last", callbacks=BEST + killer)
    assert resumed.status == 0, resumed.stderr
    assert "the best by train/loss" in resumed.stdout
    for name in ("adapter_model.safetensors", "lit_sft.json"):
        ours, theirs = (folder / "run" / "adapter" / name for folder in (tmp_path, best))
        assert ours.read_bytes() == theirs.read_bytes()
    assert json.loads(ours.read_text())["step"] < json.loads(ours.read_text())["steps_taken"] == 12


def test_a_run_that_ends_at_an_earlier_checkpoint_leaves_its_adapter(tiny_base, tmp_path):
    """The figures and the answers of the steps that are taken back go with them."""
    best = (
        "    - class_path: lightning.pytorch.callbacks.ModelCheckpoint\n"
        "      init_args: {every_n_train_steps: 4, save_top_k: -1, filename: 'at-{step}'}\n"
    )
    assert run(tmp_path, tiny_base, callbacks=best).status == 0
    (earlier,) = (tmp_path / "run").rglob("at-step=8.ckpt")
    back = ("--ckpt_path", earlier, "--trainer.max_steps", 8)
    outcome = run(tmp_path, tiny_base, *back, callbacks=best)
    assert outcome.status == 0, outcome.stderr
    state = AtomicCheckpointIO().load_checkpoint(earlier)["state_dict"]
    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    given = {
        name.removeprefix("_model.").replace(".default", ""): weight
        for name, weight in state.items()
    }
    shared = adapter.keys() & given.keys()
    assert len(shared) >= 16
    assert all(adapter[name].equal(given[name]) for name in shared)
    assert [row["step"] for row in read_result(tmp_path)[1]] == [str(step) for step in range(9)]
    assert "Fine-tuned for 8 optimizer steps" in read_card(tmp_path)[0]
