"""Whole runs, each a process of its own as a user starts it: the same bits, whatever happens.

At the recipe's own shape an arm takes some minutes, most of them to load and quantise the base:
`-k "recipe and eager"` and its like run them one by one.
"""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lit_sft.run.checkpoint_io import AtomicCheckpointIO
from lit_sft.run.folder import RunFolder

ROOT = Path(__file__).parents[2]
STEPS, SAVED_EVERY, KILLED_AT = 12, 4, 9
TIMINGS = ("second", "peak_memory")

pytestmark = pytest.mark.timeout(900)


class Result(NamedTuple):
    """What a run leaves behind."""

    adapter: dict[str, bytes]
    figures: list[dict[str, str]]
    """A row a step, without what a clock says."""


def write_config(folder: Path, base: Path, device, kernels: str, killed: bool) -> Path:
    """A short run of the recipe, evaluations and all, on rows of about GSM8K's length."""
    callbacks = [
        {"class_path": "lit_sft.GradientCheckpointing"},
        {
            "class_path": "lit_sft.GenerationEval",
            "init_args": {"every_n_steps": 6, "eval_rows": 8},
        },
    ]
    if killed:
        at = {"step": KILLED_AT}
        callbacks.append({"class_path": "killers.KillInWindow", "init_args": at})
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


def run_whole(folder: Path, base: Path, device, kernels: str, *arguments: object) -> Result:
    outcome = fit(write_config(folder, base, device, kernels, killed=False), *arguments)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "may differ in the last bits" not in outcome.stdout + outcome.stderr
    return read_result(folder)


@pytest.fixture(scope="module")
def whole_runs(make_base, device, tmp_path_factory):
    """Runs that nothing disturbs, one of each size and way, made when they are asked for."""
    done: dict[tuple[str, str], Result] = {}

    def get(size: str, kernels: str) -> Result:
        if (size, kernels) not in done:
            folder = tmp_path_factory.mktemp(f"whole-{size}-{kernels}")
            done[size, kernels] = run_whole(folder, make_base(size), device, kernels)
        return done[size, kernels]

    return get


def test_two_runs_end_with_the_same_bits(make_base, device, whole_runs, tmp_path, size, kernels):
    first = whole_runs(size, kernels)
    second = run_whole(tmp_path, make_base(size), device, kernels)
    assert [row["step"] for row in first.figures] == [str(step) for step in range(STEPS + 1)]
    assert second.figures == first.figures
    assert second.adapter == first.adapter


def test_killed_and_resumed_ends_with_the_same_bits(
    make_base, device, whole_runs, tmp_path, size, kernels
):
    config = write_config(tmp_path, make_base(size), device, kernels, killed=True)
    killed = fit(config)
    assert killed.returncode == -9, killed.stdout + killed.stderr
    saved = AtomicCheckpointIO().load_checkpoint(RunFolder(tmp_path / "run").last_checkpoint)
    assert saved["global_step"] == KILLED_AT - 1
    resumed = fit(config, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    whole = whole_runs(size, kernels)
    result = read_result(tmp_path)
    assert result.figures == whole.figures
    assert result.adapter == whole.adapter


def test_the_optimizers_pages_survive_a_checkpoint(device):
    from lit_sft.model.optim import build_optimizer

    def step(optimizer, parameter, number):
        torch.manual_seed(number)
        parameter.grad = torch.randn(parameter.shape, device=device)
        optimizer.step()

    parameters, optimizers = [], []
    for _ in range(2):
        torch.manual_seed(0)
        parameters.append(torch.nn.Parameter(torch.randn(200_000, device=device)))
        optimizers.append(build_optimizer("paged_adamw_32bit", [parameters[-1:]], 1e-2, 0.1))
    for number in range(3):
        step(optimizers[0], parameters[0], number)
    state = optimizers[0].state[parameters[0]]["state1"]
    assert getattr(state, "is_paged", False) == (device.type == "cuda")
    parameters[1].data.copy_(parameters[0].data)
    optimizers[1].load_state_dict(through_a_file(optimizers[0].state_dict()))
    for number in range(3, 6):
        for optimizer, parameter in zip(optimizers, parameters, strict=True):
            step(optimizer, parameter, number)
    assert torch.equal(parameters[0], parameters[1])


def through_a_file(state):
    """What a checkpoint makes of a state: through bytes, and onto the CPU."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, map_location="cpu", weights_only=True)


@pytest.mark.parametrize("kernels", ["eager", "compiled"])
def test_two_cards_train_as_one_does_and_twice_the_same(make_base, device, tmp_path, kernels):
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device; this takes two")
    base = make_base("tiny" if device.type == "cpu" else "small")
    two = ("--trainer.devices", 2, "--trainer.strategy", "ddp")
    two += ("--data.accumulate_grad_batches", 2)
    exact = ("--trainer.precision", "32-true", "--model.lora.dropout", 0.0)
    one = run_whole(tmp_path / "one", base, device, kernels, *exact)
    both = [run_whole(tmp_path / x, base, device, kernels, *exact, *two) for x in "ab"]
    assert both[0].adapter == both[1].adapter
    assert both[0].figures == both[1].figures
    losses = [[float(row["train/loss"]) for row in result.figures[1:]] for result in (one, both[0])]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    file = "run/adapter/adapter_model.safetensors"
    weights = [load_file(tmp_path / name / file) for name in ("one", "a")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-2, atol=1e-4)
