"""A streamed run is resumed on the rows that it had, wherever they lie, and on no others."""

import json
import os
import shutil
from pathlib import Path

import pytest
from command import ROOT, lit_sft

from lit_sft.run.checkpoint_io import AtomicCheckpointIO
from lit_sft.run.folder import RunFolder

ROWS, STEPS = 3000, 10
UNSEEN = range(1501, 1503)
"""Rows that are not in the sample of 1,024."""


def write_rows(path: Path) -> None:
    rows = ({"question": f"{n}?", "answer": f"{n:04}"} for n in range(ROWS))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_rows(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    for number in UNSEEN:
        lines[number] = lines[number].replace(f"{number:04}", "9999")
    path.write_text("".join(lines))


def make_config(base: Path, callback: str) -> str:
    return f"""
report: false
model:
  base_model: {base}
  lora: {{r: 4, alpha: 8}}
data:
  task: {{class_path: lit_sft.ChatFile, init_args: {{path: rows.jsonl}}}}
  streaming: true
  batch_size: 2
  accumulate_grad_batches: 2
  max_length: 100
  val_rows: 4
checkpoint: {{every_n_steps: 1}}
trainer:
  default_root_dir: run
  max_steps: {STEPS}
  limit_val_batches: 0
  callbacks:
    - {callback}
"""


def run(folder: Path, base: Path, *arguments: object, callback: str):
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(make_config(base, callback))
    env = {"PYTHONPATH": f"{Path(__file__).parent}:{ROOT}", "LIT_SFT_CACHE": str(folder / "cache")}
    return lit_sft("fit", "--config", "config.yaml", *arguments, cwd=folder, env=env)


def read_adapter(folder: Path) -> bytes:
    return (folder / "run" / "adapter" / "adapter_model.safetensors").read_bytes()


KILL = "{class_path: killers.KillInWindow, init_args: {step: 2}}"
CHANGE = "{class_path: killers.ChangeFile, init_args: {step: 2, path: rows.jsonl}}"


@pytest.fixture(scope="module")
def killed(tiny_base, tmp_path_factory):
    """A run that was killed in its third step."""
    folder = tmp_path_factory.mktemp("killed")
    write_rows(folder / "rows.jsonl")
    assert run(folder, tiny_base, callback=KILL).status == -9
    return folder


def test_changed_rows_are_refused_and_put_back_are_resumed(tiny_base, killed, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(killed, folder)
    change_rows(folder / "rows.jsonl")
    refused = run(folder, tiny_base, "--ckpt_path", "last", callback=KILL)
    assert refused.status == 2, refused.stdout + refused.stderr
    assert "\n  data.contents: was " in refused.stderr
    assert "--model.accept_changes '[data.contents]'" in refused.stderr
    assert "data.rows" not in refused.stderr
    assert "Traceback" not in refused.stderr
    write_rows(folder / "rows.jsonl")
    resumed = run(folder, tiny_base, "--ckpt_path", "last", callback=KILL)
    assert resumed.status == 0, resumed.stderr


def test_rows_that_were_touched_and_moved_are_resumed(tiny_base, killed, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(killed, folder)
    (folder / "data").mkdir()
    os.utime((folder / "rows.jsonl").rename(folder / "data" / "chats.jsonl"), ns=(1, 1))
    moved = ("--data.task.path", "data/chats.jsonl")
    resumed = run(folder, tiny_base, "--ckpt_path", "last", *moved, callback=KILL)
    assert resumed.status == 0, resumed.stderr
    whole = tmp_path / "whole"
    whole.mkdir()
    write_rows(whole / "rows.jsonl")
    assert run(whole, tiny_base, callback="lit_sft.GradientCheckpointing").status == 0
    assert read_adapter(folder) == read_adapter(whole)


def test_a_checkpoint_of_before_rows_were_hashed_whole_is_resumed(tiny_base, killed, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(killed, folder)
    checkpoint = AtomicCheckpointIO().load_checkpoint(RunFolder(folder / "run").last_checkpoint)
    del checkpoint["run"]["data.contents"]
    AtomicCheckpointIO().save_checkpoint(checkpoint, RunFolder(folder / "run").last_checkpoint)
    resumed = run(folder, tiny_base, "--ckpt_path", "last", callback=KILL)
    assert resumed.status == 0, resumed.stderr
    said = resumed.stdout + resumed.stderr
    assert "the checkpoint does not say, and may differ in: data.contents" in said


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_changes_under_a_run_ends_it_in_one_line(tiny_base, tmp_path, workers):
    write_rows(tmp_path / "rows.jsonl")
    ended = run(tmp_path, tiny_base, "--data.num_workers", workers, callback=CHANGE)
    last = AtomicCheckpointIO().load_checkpoint(RunFolder(tmp_path / "run").last_checkpoint)
    assert ended.status == 2, ended.stderr
    assert "error: rows.jsonl: the file has been changed" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert 2 <= last["global_step"] < STEPS
