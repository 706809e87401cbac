"""WandbRun, with the real client of W&B: offline, without a server, and killed and resumed."""

import csv
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from command import ROOT, lit_sft
from small_run import NOBODY, fit_options, isolated
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
    """Read a run's `.wandb` file: blocks of 32 KiB with parts of records, after 7 bytes of header."""
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
        [sys.executable, "-m", "lit_sft", "fit", *fit_options(tiny_base, root / "run"),
         "--trainer.logger=lit_sft.WandbRun"],
        cwd=ROOT,
        env=os.environ | isolated(root / "home", OMP_NUM_THREADS="1", COLUMNS="200"),
        preexec_fn=lambda: os.login_tty(slave),
    )  # fmt: skip
    os.close(slave)
    watchdog = threading.Timer(60, process.kill)
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


@pytest.fixture(scope="module")
def resumed(tiny_base, tmp_path_factory):
    """A run of 9 steps: killed once without a server, killed once with one, and then ended."""
    root = tmp_path_factory.mktemp("resumed")
    (root / "killer.py").write_text(KILLER)
    options = [
        *fit_options(tiny_base, root / "run", steps=9),
        "--checkpoint.every_n_steps=2",
        "--trainer.logger=lit_sft.WandbRun",
        "--trainer.logger.init_timeout=1",
    ]
    env = {"WANDB_API_KEY": KEY, "WANDB_HTTP_TIMEOUT": "1", "PYTHONPATH": str(root)}
    env = isolated(root / "home") | env

    def fit(url: str, *more: str) -> Any:
        return lit_sft("fit", *options, *more, env=env | {"WANDB_BASE_URL": url}, timeout=60)

    def kill_at(step: int) -> list[str]:
        return ["--trainer.callbacks+=killer.Kill", f"--trainer.callbacks.step={step}"]

    with serve_wandb() as server:
        outcomes = [fit(NOBODY, *kill_at(5))]
        outcomes.append(fit(server.url, "--ckpt_path=last", *kill_at(7)))
        # As if all of it had arrived, up to a step behind the one that is resumed from.
        for name, rows in server.history.items():
            rows[:] = [{"_step": step, "old": name} for step in range(1, 8)]
        outcomes.append(fit(server.url, "--ckpt_path=last"))
        yield root / "run", server, outcomes


def test_server_that_is_down_stops_nothing(resumed):
    root, _, outcomes = resumed
    assert [outcome.status for outcome in outcomes] == [-9, -9, 0], outcomes[-1].stderr
    assert "W&B cannot be reached" in outcomes[0].stderr
    assert "step 4/9" in outcomes[0].stdout
    assert len(list((root / "wandb").glob("offline-run-*"))) == 1


def test_killed_run_goes_on_as_the_same_run_without_gap_or_repetition(resumed):
    root, server, _ = resumed
    ((name, rows),) = server.history.items()
    assert (root / "wandb" / "run_id").read_text() == name
    assert [row["_step"] for row in rows] == list(range(1, 10))
    assert ["old" in row for row in rows] == [True] * 7 + [False] * 2
    losses = read_losses(root)
    assert list(losses) == list(range(1, 10))
    assert rows[-1]["train/loss"] == pytest.approx(losses[9])
    assert server.exit_codes == {name: 0}
    assert server.configs[name]["data"]["value"]["train"]["kept"] == 32


def test_rows_that_were_lost_are_sent_when_the_run_is_resumed(resumed, tmp_path):
    root, _, _ = resumed
    second = sorted((root / "wandb").glob("run-*-*"))[1]
    records = read_records(second)
    steps = [read_items(r.history.item)["_step"] for r in records if r.HasField("history")]
    assert steps[:4] == [1, 2, 3, 4], "W&B had none of them; the run was resumed from step 4"


def test_login_that_the_server_refuses_is_found_before_training(tiny_base, tmp_path):
    with serve_wandb() as server:
        server.status = 401
        outcome = lit_sft(
            "fit", *fit_options(tiny_base, tmp_path / "run"), "--trainer.logger=lit_sft.WandbRun",
            env=isolated(tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY), timeout=60,
        )  # fmt: skip
    assert outcome.status == 2
    assert "error: WandbRun: W&B refuses the run" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "training" not in outcome.stdout
    shutil.rmtree(tmp_path)
