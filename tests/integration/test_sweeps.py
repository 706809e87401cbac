"""The sweeps of docs/SWEEPS.md, as they stand there, on the embedded base."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command import ROOT, Outcome
from forks import run_forked
from small_run import fit_options, isolated

from lit_sft.run.sessions import read_sessions

TEXT = (ROOT / "docs" / "SWEEPS.md").read_text()
WHOLE = {"adapter", "checkpoints", "config.yaml", "logs", "report.html"}
SECOND = """
class Second(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return trial.number == 1

"""


def find_block(language):
    return re.search(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[1]


def shorten(script, *changes):
    for before, after in changes:
        assert before in script
        script = script.replace(before, after)
    return script


def make_environment(folder, **env):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PATH": path,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    return environment | isolated(folder / "home") | env


def test_a_study_of_optuna_prunes_and_leaves_whole_runs(tmp_path):
    pytest.importorskip("optuna", reason="optuna is not installed")
    script = shorten(
        find_block("python"),
        ("STEPS, TRIALS, ROWS = 60, 20, 256", "STEPS, TRIALS, ROWS = 2, 2, 2"),
        ("global_step % 20", "global_step % 1"),
        ("every_n_steps=20", "every_n_steps=1"),
        ("max_new_tokens=128", "max_new_tokens=8"),
        ("lit_sft.WordProblems()", "lit_sft.WordProblems(train_rows=64, val_rows=4)"),
        ("optuna.pruners.MedianPruner()", "Second()"),
        ("study = ", f"{SECOND}study = "),
    )
    environment = make_environment(tmp_path)
    done = Outcome(*run_forked((), tmp_path, environment, 600, program=script))
    assert done.status == 0, done.stderr
    assert "Trial 1 pruned" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("{'learning_rate': ")
    for trial, steps in (("0", 2), ("1", 1)):
        root = tmp_path / "runs" / "sweep" / trial
        assert {x.name for x in root.iterdir()} >= WHOLE - {"config.yaml"}
        assert (root / "adapter" / "adapter_model.safetensors").is_file()
        sessions, _ = read_sessions(root / "logs" / "sessions.jsonl")
        assert [(x["event"], x["step"]) for x in sessions] == [("begin", 0), ("end", steps)]


@pytest.mark.slow
def test_a_trial_of_a_sweep_of_wandb_is_a_run_of_its_own(tmp_path):
    sweep = yaml.safe_load(find_block("yaml"))
    assert sweep["command"][-1] == "${args}"
    command = [
        word.replace("exec lit-sft", f"exec {sys.executable} -m lit_sft").replace(
            "--config configs", f"--config {ROOT}/configs"
        )
        for word in sweep["command"][:-1]
    ]
    chosen = [f"--{name}={value}" for name, value in (("model.learning_rate", 3e-3),)]
    assert "model.learning_rate" in sweep["parameters"]
    small = [
        x
        for x in fit_options(Path("lit_sft/tiny"), tmp_path, report=True)
        if "default_root" not in x
    ]
    short = ["--trainer.callbacks=[]", "--trainer.limit_val_batches=1"]
    ids = {"WANDB_RUN_ID": "abc123", "WANDB_SWEEP_ID": "sweep1", "WANDB_MODE": "offline"}
    done = subprocess.run(
        [*command, *chosen, *small, *short], cwd=tmp_path, env=make_environment(tmp_path, **ids),
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    root = tmp_path / "runs" / "sweep" / "abc123"
    assert {x.name for x in root.iterdir()} >= WHOLE
    assert yaml.safe_load((root / "config.yaml").read_text())["model"]["learning_rate"] == 3e-3
    assert [*(root / "wandb").glob("offline-run-*-abc123")]
