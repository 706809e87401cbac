"""Does a rank that shares a base take half the memory, and at what price in speed? On a CPU.

    PYTHONPATH=. python tests/benchmarks/sharding.py

makes a random Llama of 200 million weights, 400 MB on the disk, with the tokenizer of the tests,
and trains it for a few windows by one process, by two with the base each (ddp), and by two that
share it (fsdp2). It prints the most that the process of any rank held, and the tokens of a second
and of a CPU second of all ranks, as neighbours slow the wall's. What a process takes without a
base, its libraries above all, is measured with one of a few KB.
"""

import argparse
import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

sys.path += [str(Path(__file__).parents[1] / folder) for folder in (".", "gpu")]
from scaling import write_base
from tiny_tokenizer import build_tiny_tokenizer
from transformers import LlamaConfig

ROOT = Path(__file__).parents[2]
ARMS = {"one process": (1, "auto"), "ddp by two": (2, "ddp"), "fsdp2 by two": (2, "fsdp2")}
ROWS, STEPS = 4, 5
"""Of a window, over all ranks; the first step and the last, which is profiled, do not count."""


class Figures(NamedTuple):
    """Of an arm."""

    peak_mib: float
    tokens_per_second: float
    per_cpu_second: float
    loss: float


def make_base(folder: Path, hidden: int, layers: int) -> Path:
    """Write random weights and their tokenizer."""
    tokenizer = build_tiny_tokenizer()
    heads = max(4, hidden // 64)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    write_base(config, folder, folder)
    tokenizer.save_pretrained(folder)
    return folder


def measure(base: Path, folder: Path, arm: str, more: list[str]) -> Figures:
    """Train one arm, and read what its ranks have written."""
    devices, strategy = ARMS[arm]
    shutil.rmtree(folder, ignore_errors=True)
    gpu = Path(__file__).parents[1] / "gpu"
    with (folder.parent / "log").open("w") as log:
        subprocess.run(
            [
                *(sys.executable, "-m", "lit_sft", "fit", "--report", "false"),
                *("--model.base_model", str(base), "--data.task", "lit_sft.WordProblems"),
                *("--data.task.init_args.train_rows", "64", "--data.val_rows", "0"),
                *("--data.batch_size", str(ROWS // devices), "--data.max_length", "512"),
                *("--data.accumulate_grad_batches", "1", "--trainer.limit_val_batches", "0"),
                *("--trainer.max_steps", str(STEPS), "--model.optimizer", "adamw"),
                *("--trainer.accelerator", "cpu", "--trainer.devices", str(devices)),
                *("--trainer.strategy", strategy, "--trainer.default_root_dir", str(folder)),
                *("--data.max_tokens_per_pass", "512"),
                *("--trainer.callbacks", "lit_sft.GradientCheckpointing"),
                *("--trainer.callbacks.policy", "all", "--trainer.callbacks+", "scaling.Measure"),
                *more,
            ],
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{gpu}", "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            check=True,
            stdout=log,
            stderr=log,
        )
    ranks: list[dict[str, Any]] = [json.loads(x.read_text()) for x in folder.glob("rank-*.json")]
    with (folder / "logs" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    said = (folder.parent / "log").read_text()
    tokens = float(re.search(r"^train +\d+ +\d+ +\d+ +([\d.]+)", said, re.MULTILINE)[1]) * ROWS
    return Figures(
        max(rank["peak_gib"] for rank in ranks) * 2**10,
        statistics.median(float(row["train/tokens_per_second"]) for row in rows[1:-1]),
        tokens * (STEPS - 2) / sum(rank["cpu_seconds"] for rank in ranks),
        float(rows[0]["train/loss"]),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--weight_cache", default="none", choices=("none", "auto", "bf16"))
    parser.add_argument("more", nargs="*", help="options of lit-sft fit, behind --")
    options = parser.parse_args()
    more = ["--model.quantization.weight_cache", options.weight_cache, *options.more]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        base = make_base(folder / "base", options.hidden, options.layers)
        size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
        without = measure(make_base(folder / "none", 64, 2), folder / "run", "one process", more)
        print(f"base: {size / 2**20:,.0f} MiB on the disk; a process without: ", end="")
        print(
            f"{without.peak_mib:,.0f} MiB\n\n| arm | peak MiB | share | without libraries ", end=""
        )
        print(f"| share | tokens/s | a CPU second | first loss |\n|{'---|' * 8}", flush=True)
        alone = 0.0
        for arm in ARMS:
            found = measure(base, folder / "run", arm, more)
            alone = alone or found.peak_mib
            own = found.peak_mib - without.peak_mib
            print(
                f"| {arm} | {found.peak_mib:,.0f} | {found.peak_mib / alone:.2f} | {own:,.0f} "
                f"| {own / (alone - without.peak_mib):.2f} | {found.tokens_per_second:,.0f} "
                f"| {found.per_cpu_second:,.0f} | {found.loss:.6f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
