"""Run a whole job of the command line on one CUDA GPU, and print its seconds by phases.

    PYTHONPATH=. python tests/gpu/job.py --config ../shared/llama-3.2-3b --rows ../shared/gsm8k

makes a random base of the config's size, with its tokenizer, and fine-tunes it by
`configs/gsm8k_qlora.yaml` as that is shipped, but for Weights & Biases and the Hub. Random weights
hardly ever stop, so every answer of an evaluation has all its tokens. What stands behind `--` goes
to `lit-sft fit`; `--tiny` is a dry run on a CPU.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from speed import TINY, write_base
from transformers import AutoConfig

ROOT = Path(__file__).parents[2]
STARTED = "LIT_SFT_JOB_STARTED"
SMALL = (
    "--trainer.max_steps",
    "4",
    "--trainer.accelerator",
    "cpu",
    "--trainer.precision",
    "32-true",
)
"""What a dry run changes."""


class Phases(pl.Callback):
    """Notes when the phases of a run begin, in a file beside its checkpoints."""

    def setup(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        self.marks = {"read": time.time()}

    def on_fit_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.marks["loaded"] = time.time()

    def on_train_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.marks["evaluated"] = time.time()  # it is the last callback, and the module follows

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.marks.setdefault("settled", time.time())

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.marks.setdefault("captured", time.time())

    def on_train_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks["trained"] = time.time()

    def teardown(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        self.marks["left"] = time.time()
        with Path(trainer.default_root_dir, "phases.csv").open("w") as file:
            csv.writer(file).writerows(self.marks.items())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="a folder with config.json and a tokenizer")
    parser.add_argument("--rows", required=True, help="a folder with train.jsonl and test.jsonl")
    parser.add_argument("--times", type=int, default=1, help="the second start finds caches")
    parser.add_argument("--tiny", action="store_true", help="a dry run on the CPU")
    parser.add_argument("more", nargs="*", help="options of lit-sft fit, behind --")
    options = parser.parse_args()
    device = torch.device("cpu" if options.tiny else "cuda")
    sizes: dict[str, Any] = TINY | {"vocab_size": 128256} if options.tiny else {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        write_base(AutoConfig.from_pretrained(options.config, **sizes), device, str(base))
        torch.cuda.empty_cache()  # the job is another process
        for path in Path(options.config).glob("*token*"):
            shutil.copy(path, base)
        for _ in range(options.times):
            shutil.rmtree(Path(folder, "run"), ignore_errors=True)
            more = [*(SMALL if options.tiny else ()), *options.more]
            print_phases(*run(base, options.rows, Path(folder, "run"), more))


def run(base: Path, rows: str, folder: Path, more: list[str]) -> tuple[float, float, Path]:
    """Run the job; return when it began and ended, and its folder."""
    environ = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{os.environ['PYTHONPATH']}"}
    started = time.time()
    subprocess.run(
        [
            *(sys.executable, "-m", "lit_sft", "fit"),
            *("--config", str(ROOT / "configs" / "gsm8k_qlora.yaml")),
            *("--model.base_model", str(base), "--data.task.init_args.path", rows),
            *("--trainer.logger", "false", "--trainer.default_root_dir", str(folder)),
            *("--trainer.callbacks+", "job.Phases", *more),
        ],
        env=environ,
        check=True,
        cwd=ROOT,
    )
    return started, time.time(), folder


def print_phases(started: float, ended: float, folder: Path) -> None:
    """Print where the seconds of a job went."""
    with (folder / "phases.csv").open() as file:
        marks = {name: float(at) for name, at in csv.reader(file)}
    with (folder / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    column = "val/eval_seconds"
    evaluations = {int(row["step"]): float(row[column]) for row in rows if row.get(column)}
    first = evaluations.pop(0, 0.0)
    steps = max(int(row["step"]) for row in rows)
    captured = marks["captured"] - marks["settled"]
    training = marks["trained"] - marks["captured"] - sum(evaluations.values())
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"\n{name}, torch {torch.__version__}, {steps:,} steps\n\n| phase | seconds |\n|---|---|")
    for phase, seconds in {
        "start and rows": marks["read"] - started,
        "weights": marks["loaded"] - marks["read"],
        "compile": marks["settled"] - marks["evaluated"],
        "first step": captured,
        f"the other steps ({training / max(1, steps - 1) * 1e3:.1f} ms each, saves included)": (
            training
        ),
        f"{1 + len(evaluations)} evaluations ({first:.1f} the first)": (
            first + sum(evaluations.values())
        ),
        "end": marks["left"] - marks["trained"],
        "leaving the device": ended - marks["left"],
        "all": ended - started,
    }.items():
        print(f"| {phase} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
