"""The batch file of docs/SCALING.md, with an `srun` and a `scontrol` that do what SLURM's do."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import ROOT
from test_interrupted_runs import make_config, read_result, run
from test_signals import LIMIT, halt

from lit_sft.run.folder import RunFolder

SRUN = """#!{python}
import os, signal, subprocess, sys

words, options = sys.argv[1:], []
while words[0].startswith("--"):
    options.append(words.pop(0))
assert "--cpus-per-task=8" in options, "a task has one core: srun does not read sbatch's number"
count = {tasks}
about = {{"SLURM_NTASKS": count, "SLURM_STEP_TASKS_PER_NODE": count, "SLURM_NNODES": 1,
          "SLURM_NTASKS_PER_NODE": count, "SLURM_STEP_ID": 0, "SLURM_NODEID": 0,
          "SLURM_NODELIST": "127.0.0.1"}}
tasks = []
for rank in range(count):
    more = about | {{"SLURM_PROCID": rank, "SLURM_LOCALID": rank}}
    env = os.environ | {{name: str(value) for name, value in more.items()}}
    tasks.append(subprocess.Popen(words, env=env))
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, _: [task.send_signal(number) for task in tasks])
open("srun.pid.part", "w").write(str(os.getpid()))
os.rename("srun.pid.part", "srun.pid")
sys.exit(max(task.wait() for task in tasks))
"""


def read_batch_file() -> str:
    page = (ROOT / "docs" / "SCALING.md").read_text()
    (text,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", page, re.DOTALL)
    return text


def submit(folder: Path, base: Path, tasks: int, callbacks: str) -> subprocess.Popen:
    """Start the batch file in a folder, as `sbatch` would."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    config = make_config(base, callbacks).replace("trainer:\n", "trainer:\n  accelerator: cpu\n")
    (folder / "configs" / "gsm8k_qlora.yaml").write_text(config)
    (folder / "job.sh").write_text(read_batch_file())
    commands = {
        "srun": SRUN.format(python=sys.executable, tasks=tasks),
        "scontrol": '#!/bin/bash\necho "$@" >> scontrol.txt\n',
        "lit-sft": f'#!/bin/bash\nexec {sys.executable} -m lit_sft "$@"\n',
    }
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in commands.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    env = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{Path(__file__).parent}:{ROOT}",
        "OMP_NUM_THREADS": "1",
        "LIT_SFT_CACHE": str(folder / "cache"),
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "gsm8k",
    }
    with (folder / "out.txt").open("a") as out:
        return subprocess.Popen(
            ["bash", "job.sh"], cwd=folder, env=env, stdout=out, stderr=out, start_new_session=True
        )


def wait_until_halted(job: subprocess.Popen, folder: Path, phase: str, rank: int = 0) -> int:
    """Return the process of a rank, once it has come to a phase."""
    mark = folder / "run" / f".halted-{phase}-{rank}"
    while not mark.exists():
        assert job.poll() is None, (folder / "out.txt").read_text()
        time.sleep(0.05)
    return int(mark.read_text())


@pytest.mark.timeout(900)
@pytest.mark.parametrize("tasks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_job_whose_time_is_over_saves_is_requeued_once_and_goes_on(tiny_base, tmp_path, tasks):
    """Of two tasks, one is sent SIGTERM in its place."""
    callbacks = halt("window")
    job = submit(tmp_path, tiny_base, tasks, callbacks)
    ranks = [wait_until_halted(job, tmp_path, "window", rank) for rank in range(tasks)]
    to = ranks if tasks > 1 else [int((tmp_path / "srun.pid").read_text())]
    for process, number in zip(to, (signal.SIGUSR1, signal.SIGTERM), strict=False):
        os.kill(process, number)
    assert job.wait(LIMIT) == 128 + signal.SIGUSR1, (tmp_path / "out.txt").read_text()
    printed = (tmp_path / "out.txt").read_text()
    assert printed.count("SIGUSR1 received: the run is saved") == 1, printed
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 4711\n"
    assert RunFolder(tmp_path / "run").last_checkpoint.exists()
    assert not list(tmp_path.rglob("hpc_ckpt*")), "Lightning's own requeueing has saved, too"
    assert submit(tmp_path, tiny_base, tasks, callbacks).wait(600) == 0
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 4711\n"
    assert "Traceback" not in (tmp_path / "out.txt").read_text()
    assert "frame #" not in (tmp_path / "out.txt").read_text()
    assert "SLURM" not in (tmp_path / "out.txt").read_text()
    if tasks == 1:
        assert run(tmp_path / "whole", tiny_base).status == 0
        assert read_result(tmp_path) == read_result(tmp_path / "whole")


def test_a_sigterm_behind_it_ends_the_job_at_once_and_it_is_requeued(tiny_base, tmp_path):
    """Both are sent to all processes of the job, as at its end or where it is preempted."""
    job = submit(tmp_path, tiny_base, 1, halt("evaluation"))
    wait_until_halted(job, tmp_path, "evaluation")
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGUSR1)
    time.sleep(2.5)
    printed = (tmp_path / "out.txt").read_text()
    assert job.poll() is None, printed
    os.killpg(job.pid, signal.SIGTERM)
    assert job.wait(LIMIT) == 128 + signal.SIGUSR1, (tmp_path / "out.txt").read_text()
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 4711\n"
