"""A disk that fills up in the middle of a run costs the newest checkpoint, never the one before."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from test_interrupted_runs import read_result, run

from lit_sft.run.checkpoint_io import AtomicCheckpointIO


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few megabytes, where the machine allows one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a process may end late


def fill(folder: Path) -> None:
    """Write until nothing fits."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return


def test_a_full_disk_keeps_the_last_good_checkpoint(tiny_base, small_disk, tmp_path):
    first = run(small_disk, tiny_base, "--trainer.max_steps", 4, "--data.cache_dir", tmp_path / "c")
    assert first.status == 0, first.stderr
    last = small_disk / "run" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    fill(small_disk)
    options = ("--ckpt_path", "last", "--data.cache_dir", tmp_path / "c")
    full = run(small_disk, tiny_base, *options)
    assert full.status == 1, full.stderr
    assert "No space left on device" in full.stderr
    assert "Traceback" not in full.stderr
    assert last.read_bytes() == before
    assert AtomicCheckpointIO().load_checkpoint(last)["global_step"] == 4
    (small_disk / "ballast").unlink()
    resumed = run(small_disk, tiny_base, *options)
    assert resumed.status == 0, resumed.stderr
    assert read_result(small_disk)[1][-1]["step"] == "12"


def test_a_read_only_folder_is_found_before_the_model_loads(tiny_base, small_disk, tmp_path):
    (small_disk / "run").mkdir()
    shutil.chown(small_disk, user="root")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    folder = tmp_path / "work"
    outcome = run(folder, tiny_base, "--trainer.default_root_dir", small_disk / "run")
    assert outcome.status == 2, outcome.stderr
    assert "cannot be written (Read-only file system)" in outcome.stderr
    assert "loading" not in outcome.stdout


@pytest.mark.parametrize("state", ["full", pytest.param("read-only", marks=pytest.mark.slow)])
def test_a_run_needs_no_space_for_temporary_files(
    tiny_base, small_disk, tmp_path, monkeypatch, state
):
    """What is staged is staged beside its target, where the space is that it will take anyway."""
    if state == "full":
        fill(small_disk)
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    monkeypatch.setenv("TMPDIR", str(small_disk))
    options = ("--trainer.max_steps", 4)
    outcome = run(tmp_path / "work", tiny_base, *options, workers=2)
    assert outcome.status == 0, outcome.stderr
    last = tmp_path / "work" / "run" / "checkpoints" / "last.ckpt"
    assert AtomicCheckpointIO().load_checkpoint(last)["global_step"] == 4
    assert (tmp_path / "work" / "run" / "adapter" / "adapter_model.safetensors").is_file()
