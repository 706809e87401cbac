"""WandbRun, with the real client of W&B: offline, without a server, and killed and resumed."""

import csv
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from command import ROOT, lit_sft
from small_run import fit_options, isolated
from wandb.proto.wandb_internal_pb2 import Record
from wandb_server import serve_wandb

KEY = "0123456789" * 4
KILLER = """
import os, signal
import lightning.pytorch as pl

class Kill(pl.Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def read_records(folder: Path) -> list[Record]:
    """Read a `.wandb` file: blocks of 32 KiB with parts of records, after 7 bytes of header."""
    (path,) = folder.glob("run-*.wandb")
    data, position, record, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        position += 7 + size
        record += data[position - size : position]
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(record))
            record = b""
    return records


def read_items(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def read_losses(root: Path) -> dict[int, float]:
    with (root / "logs" / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file)}


def read_terminal(master: int) -> str:
    output = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # Linux says so when the last writer has gone
            part = b""
        if not part:
            return output.decode()
        output += part


@pytest.fixture(scope="module")
def offline(tiny_base, tmp_path_factory) -> tuple[Path, int, str]:
    """The folder, status and terminal of a run at a terminal, where a prompt could be shown."""
    root = tmp_path_factory.mktemp("offline")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "lit_sft", "fit", *fit_options(tiny_base, root / "run", report=True),
         "--trainer.logger=lit_sft.WandbRun"],
        cwd=ROOT,
        env=os.environ | isolated(root / "home", OMP_NUM_THREADS="1", COLUMNS="200"),
        preexec_fn=lambda: os.login_tty(slave),
    )  # fmt: skip
    os.close(slave)
    watchdog = threading.Timer(600, process.kill)
    watchdog.start()
    output = read_terminal(master)
    status = process.wait()
    watchdog.cancel()
    return root / "run", status, output


def test_run_without_login_is_offline_and_asks_nothing(offline):
    root, status, output = offline
    assert status == 0, output
    assert "Enter your choice" not in output
    (folder,) = (root / "wandb").glob("offline-run-*")
    assert f"wandb sync {folder}" in output.replace("\r\n", "")


def test_the_bar_ends_before_what_came_of_the_run(offline):
    output = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", offline[2])
    bars = [line for line in re.split(r"[\r\n]+", output) if line.startswith("Training ")]
    done, total = re.search(r"(\d+)/(\d+)", bars[-1]).groups()
    assert done == total
    assert output.rindex("Training ") < output.index("wrote ")


def test_offline_file_has_config_history_and_exit_code(offline):
    root, _, _ = offline
    (folder,) = (root / "wandb").glob("offline-run-*")
    records = read_records(folder)
    config: dict[str, Any] = {}
    for record in records:
        config |= read_items(record.config.update)
    assert config["config"]["trainer"]["max_steps"] == 4
    assert config["data"]["train"]["kept"] == 32
    assert len(config["template_sha256"]) == 64
    assert "git_commit" in config

    history = [read_items(record.history.item) for record in records if record.HasField("history")]
    losses = {row["_step"]: row["train/loss"] for row in history}
    assert [row["_step"] for row in history] == [1, 2, 3, 4], "one row an optimizer step"
    assert losses == pytest.approx(read_losses(root))
    assert "val/loss" in history[-1], "in the row of its step"
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    kept = [record.artifact.type for record in records if record.HasField("artifact")]
    assert "report" in kept


@pytest.fixture(scope="module")
def killed(tiny_base, tmp_path_factory):
    """A run that was killed in step 5, with a checkpoint of step 4, and a way to train it on."""
    root = tmp_path_factory.mktemp("killed")
    (root / "killer.py").write_text(KILLER)
    with serve_wandb() as server:
        env = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "PYTHONPATH": f"{root}:{ROOT}"}

        def fit(folder: Path, *more: str) -> Any:
            options = [*fit_options(tiny_base, folder, 7), "--checkpoint.every_n_steps=2"]
            options += ["--trainer.logger=lit_sft.WandbRun", *more]
            return lit_sft("fit", *options, env=isolated(root / "home") | env)

        kill = ["--trainer.callbacks=killer.Kill", "--trainer.callbacks.step=5"]
        outcome = fit(root / "run", *kill)
        assert outcome.status == -9, outcome.stderr
        yield root / "run", server, fit


@pytest.mark.parametrize("arrived", [5, 2], ids=["one more than the checkpoint", "too few"])
def test_killed_run_goes_on_as_the_same_run_without_gap_or_repetition(killed, arrived, tmp_path):
    folder, server, fit = killed
    root = tmp_path / "run"
    shutil.copytree(folder, root, symlinks=True)
    name = (root / "wandb" / "run_id").read_text()
    assert list(server.history) == [name]
    server.history[name] = [{"_step": step} for step in range(1, arrived + 1)]
    outcome = fit(root, "--ckpt_path=last")
    assert outcome.status == 0, outcome.stderr
    assert f"View run at {server.url}/me/lit-sft/runs/{name}" in outcome.stderr
    assert server.exit_codes.pop(name) == 0
    assert server.configs[name]["data"]["value"]["train"]["kept"] == 32

    ((same_name, rows),) = server.history.items()
    assert same_name == name
    assert [row["_step"] for row in rows] == list(range(1, 8))
    sent = {row["_step"]: row["train/loss"] for row in rows if "train/loss" in row}
    losses = read_losses(root)
    assert sent == pytest.approx({step: losses[step] for step in range(arrived + 1, 8)})


def test_a_resumed_run_with_no_step_left_sends_what_was_lost(killed, tmp_path):
    folder, server, fit = killed
    root = tmp_path / "run"
    shutil.copytree(folder, root, symlinks=True)
    name = (root / "wandb" / "run_id").read_text()
    server.history[name] = [{"_step": 1}, {"_step": 2}]
    outcome = fit(root, "--ckpt_path=last", "--trainer.max_steps=4")
    assert outcome.status == 0, outcome.stderr
    assert "all 4 steps were taken before" in outcome.stdout
    assert [row["_step"] for row in server.history[name]] == [1, 2, 3, 4]
    sent = {row["_step"]: row["train/loss"] for row in server.history[name][2:]}
    assert sent == pytest.approx({step: read_losses(root)[step] for step in (3, 4)})


def test_login_that_the_server_refuses_is_found_before_training(tiny_base, tmp_path):
    with serve_wandb() as server:
        server.status = 401
        outcome = lit_sft(
            "fit", *fit_options(tiny_base, tmp_path / "run"), "--trainer.logger=lit_sft.WandbRun",
            env=isolated(tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY),
        )  # fmt: skip
    assert outcome.status == 2
    assert "error: WandbRun: W&B refuses the run" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "training" not in outcome.stdout
