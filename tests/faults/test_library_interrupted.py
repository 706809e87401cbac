"""A script with a `lightning.Trainer` of its own survives what the command line survives."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT, Outcome
from forks import run_forked
from test_interrupted_runs import TIMINGS

SCRIPT = """
import sys
import lightning as L
import lit_sft
import killers

base, root, *faults = sys.argv[1:]
data = lit_sft.SFTDataModule(
    lit_sft.WordProblems(train_rows=47, val_rows=6),
    batch_size=2, accumulate_grad_batches=4, max_length=400, val_rows=6,
)
module = lit_sft.SFTModule(base, learning_rate=1e-2, lora=lit_sft.Lora(r=4, alpha=8, dropout=0.1))
trainer = L.Trainer(
    max_steps=12, val_check_interval=3, accelerator="cpu", precision="32-true", logger=False,
    default_root_dir=root, log_every_n_steps=1,
    callbacks=[*(eval(x, vars(killers)) for x in faults), *lit_sft.run_callbacks(every_n_steps=2)],
)
trainer.fit(module, data, ckpt_path=lit_sft.last_checkpoint(root))
"""
HARMLESS = re.compile(
    r"does not have many workers|Paged optimizers|pytree|LeafSpec|^\s|gradient_checkpointing"
    r"|available: |Failed to load CPU gemm_4bit|Tip: |Restor|stopped: |weights_only|^$|Seed set"
)
"""What the libraries underneath say on a CPU, whoever uses them."""


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{Path(__file__).parent}:{ROOT}"}


def train(folder: Path, base: Path, *faults: str) -> Outcome:
    folder.mkdir(exist_ok=True)
    arguments, env = (base, "run", *faults), os.environ | ENVIRONMENT
    return Outcome(*run_forked(arguments, folder, env, 300, program=SCRIPT))


def read_result(folder: Path) -> tuple[dict[str, bytes], list[dict[str, str]]]:
    adapter = {x.name: x.read_bytes() for x in sorted((folder / "run" / "adapter").iterdir())}
    adapter.pop("README.md")  # what a clock says is in it
    with (folder / "run" / "logs" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return adapter, [{k: v for k, v in x.items() if not any(t in k for t in TIMINGS)} for x in rows]


@pytest.fixture(scope="module")
def whole(tiny_base, tmp_path_factory):
    """A run from scratch: what libraries say when they are imported is read below."""
    folder = tmp_path_factory.mktemp("whole")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_base), "run"],
        cwd=folder,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_it_leaves_an_adapter_with_its_tokenizer_and_says_nothing_strange(whole):
    folder, done = whole
    adapter, rows = read_result(folder)
    assert {"adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= adapter.keys()
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 13)]
    assert "Epoch" not in done.stdout
    assert "step 12/12" in done.stdout
    assert [x for x in done.stderr.splitlines() if not HARMLESS.search(x)] == []
    assert (folder / "run" / ".fit.lock").read_text() == ""


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("KillInWindow(5)", -9),
        ("KillInSave(6)", -9),
        ("Signal(4, 15)", 1),
        pytest.param("KillInEvaluation(9)", -9, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_equals_whole(tiny_base, tmp_path, whole, fault, status):
    stopped = train(tmp_path, tiny_base, fault)
    assert stopped.status == status, stopped.stderr
    assert not (tmp_path / "run" / "adapter").exists()
    if status == 1:
        assert "SIGTERM received: the run is saved" in stopped.stderr.splitlines()[-1]
    resumed = train(tmp_path, tiny_base, fault)
    assert resumed.status == 0, resumed.stderr
    assert "going on from step " in resumed.stdout
    assert read_result(tmp_path) == read_result(whole[0])
