"""Runs of the command line on a GPU, each a process of its own, as a user starts it."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
STEPS, SAVED_EVERY, KILLED_AT = 12, 4, 9
TIMINGS = ("second", "peak_memory")


class Result(NamedTuple):
    """What a run leaves behind."""

    adapter: dict[str, bytes]
    figures: list[dict[str, str]]
    """A row a step, without what a clock says."""


def write_config(
    folder: Path, base: Path, device, kernels: str, *killers: object, recomputed: str = "auto"
) -> Path:
    """A short run of the recipe, evaluations and all, on rows of about GSM8K's length."""
    callbacks = [
        {
            "class_path": "lit_sft.GradientCheckpointing",
            "init_args": {"policy": recomputed},
        },
        {
            "class_path": "lit_sft.GenerationEval",
            "init_args": {"every_n_steps": 6, "eval_rows": 8},
        },
        *killers,
    ]
    config = {
        "model": {
            "base_model": str(base),
            "learning_rate": 1e-3,
            "max_new_tokens": 8,
            "speed": {"compile": kernels == "compiled"},
        },
        "data": {
            "task": {
                "class_path": "lit_sft.WordProblems",
                "init_args": {"train_rows": 16 * STEPS // 2 + 5, "val_rows": 8},
            },
            "max_length": 512,
            "val_rows": 8,
        },
        "checkpoint": {"every_n_steps": SAVED_EVERY},
        "trainer": {
            "default_root_dir": str(folder / "run"),
            "accelerator": device.type,
            "devices": 1,
            "precision": "32-true" if device.type == "cpu" else "bf16-mixed",
            "max_steps": STEPS,
            "val_check_interval": 5,
            "callbacks": callbacks,
        },
    }
    folder.mkdir(exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def fit(config: Path, *arguments: object, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT), str(ROOT / "tests" / "faults"), os.environ.get("PYTHONPATH", "")]
        ),
        "LIT_SFT_CACHE": str(config.parent / "cache"),
        # What one process has compiled must not help the next: each would on another machine.
        "TORCHINDUCTOR_CACHE_DIR": str(config.parent / f"inductor-{len(arguments)}"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "lit_sft", "fit", "--config", config, *arguments]
    return subprocess.run(
        [str(part) for part in command],
        cwd=config.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def read_result(folder: Path) -> Result:
    adapter = {
        path.name: path.read_bytes()
        for path in sorted((folder / "run" / "adapter").iterdir())
        if path.name != "README.md"  # it holds the config
    }
    with (folder / "run" / "logs" / "metrics.csv").open(newline="") as file:
        figures = [
            {k: v for k, v in row.items() if not any(word in k for word in TIMINGS)}
            for row in csv.DictReader(file)
        ]
    return Result(adapter, figures)


def run_whole(
    folder: Path, base: Path, device, kernels: str, *arguments: object, recomputed: str = "auto"
) -> Result:
    outcome = fit(write_config(folder, base, device, kernels, recomputed=recomputed), *arguments)
    printed = outcome.stdout + outcome.stderr
    assert outcome.returncode == 0, printed
    for given_up in ("may differ in the last bits", "no CUDA graphs", "a first pass failed"):
        assert given_up not in printed
    return read_result(folder)


def run_together(runs: Iterable[Callable[[], Result]]) -> list[Result]:
    """Return what some runs leave behind, most of whose time goes into imports and compilers."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda run: run(), runs))
