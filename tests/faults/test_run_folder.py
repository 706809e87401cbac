"""Two runs in one folder, and what killed runs leave in it."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from command import ROOT
from forks import Forked
from test_interrupted_runs import kill, make_config, run


@pytest.fixture
def frozen(tiny_base, tmp_path):
    """A run that stands still in the middle of a step, with two loader workers, and all of them."""
    stop = "    - {class_path: killers.Signal, init_args: {step: 3, number: 19}}\n"  # SIGSTOP
    (tmp_path / "config.yaml").write_text(make_config(tiny_base, stop, workers=2))
    env = os.environ | {
        "PYTHONPATH": f"{Path(__file__).parent}:{ROOT}",
        "OMP_NUM_THREADS": "1",
    }
    words = ("fit", "--config", "config.yaml")
    process = Forked(words, tmp_path, env, [Path(os.devnull)] * 3)
    deadline = time.monotonic() + 300
    while _read_state(process.pid) != "T":
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    # The one that watches a rendering is isolated, and no worker.
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    workers = [child for child, words in commands.items() if b"\0-I\0" not in words]
    yield process, stop, workers
    process.wait(0.0)
    for child in workers:
        os.kill(child, signal.SIGKILL)


def _read_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_second_run_is_refused_until_the_first_is_gone_whatever_it_leaves(
    frozen, tiny_base, tmp_path
):
    process, stop, workers = frozen
    folder = tmp_path / "run"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for options in ([], ["--ckpt_path", "last"], ["--ckpt_path", "auto"]):
        refused = run(tmp_path, tiny_base, *options, callbacks=stop, workers=2)
        assert refused.status == 2, refused.stderr
        assert f"'run' is in use by another fit (host {os.uname().nodename}, " in refused.stderr
        assert f"process {process.pid}, since " in refused.stderr
        assert "loading" not in refused.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    process.wait(0.0)
    assert len(workers) >= 2
    assert {_read_state(worker) for worker in workers} == {"T"}, "they have to outlive the run"
    outcome = run(tmp_path, tiny_base, "--ckpt_path", "last", workers=2)
    assert outcome.status == 0, outcome.stderr
    assert "going on from step 3 of 12" in outcome.stdout
    assert (folder / ".fit.lock").read_text() == ""


def test_what_a_kill_left_half_written_is_gone_after_the_next_start(tiny_base, tmp_path):
    killer = kill("KillInSave", 4)
    assert run(tmp_path, tiny_base, callbacks=killer).status == -9
    left = list(tmp_path.rglob("*.tmp"))
    assert [path.name.split(".")[1] for path in left].count("last") == 1
    outcome = run(tmp_path, tiny_base, "--ckpt_path", "last", callbacks=killer)
    assert outcome.status == 0, outcome.stderr
    assert list(tmp_path.rglob("*.tmp")) == []
