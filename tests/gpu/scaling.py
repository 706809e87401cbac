"""Train a base on one device and on several, by ddp and by fsdp2, and print what each arm takes.

    PYTHONPATH=. python tests/gpu/scaling.py --config ../shared/llama-3.2-3b \
        --rows ../shared/gsm8k --shape 8b --arms 1:auto 2:ddp 4:ddp 2:fsdp2 4:fsdp2

writes random weights of that shape, a file a layer, with as many processes as there are cores, and
trains each arm for some steps of 16 rows a device through `lit-sft fit`. It prints tokens a second,
memory by card, the first loss, how long the last step's kernels did nothing but wait for other
ranks, and how long there were none; `rank-0.json` of a run has the longest. `--gradient` compares
the gradients of one window, the same rows in every arm, with those of the first arm: each row is a
pass of its own, which has the same shape in all of them. Arms for which there are cards run at the
same time. `--tiny` is a dry run of all of it on a CPU. What stands behind `--` goes to `lit-sft
fit`. The base is kept, and found by the next call with that shape. Calls at the same time, each
with its own `CUDA_VISIBLE_DEVICES`, need a `--folder` each, where they begin `run-0`, `run-1` and
so on anew.
"""

import argparse
import csv
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from safetensors.torch import save_file
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

ROOT = Path(__file__).parents[2]
ROWS, GRADIENT_ROWS = 16, 16
"""Of a window, for each device; and of the one window whose gradient is compared, in all."""
SHAPES: dict[str, dict[str, Any]] = {
    "3b": {},
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "tie_word_embeddings": False,
    },
    "70b": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "tie_word_embeddings": False,
    },
    "70bx2": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 2,
        "num_attention_heads": 64, "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip
TINY = (
    *("--trainer.accelerator", "cpu", "--trainer.precision", "32-true"),
    *("--data.batch_size", "2", "--data.max_length", "512"),
)


class Measure(pl.Callback):
    """Writes what each rank took into the run's folder, and the gradient if that is asked for."""

    def __init__(self, gradient: bool = False, limit_gib: float | None = None) -> None:
        self.gradient, self.limit_gib = gradient, limit_gib
        self.found: dict[str, Any] = {"began": time.time()}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.limit_gib and trainer.strategy.root_device.type == "cuda":
            total = torch.cuda.get_device_properties(trainer.strategy.root_device).total_memory
            share = self.limit_gib * 2**30 / total
            torch.cuda.set_per_process_memory_fraction(share, trainer.strategy.root_device)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.found["loaded"] = time.time()
        if pl_module.device.type == "cuda":
            self.found["base_gib"] = torch.cuda.memory_allocated() / 2**30
            self.found["load_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == 1:
            self.found["cpu_seconds"] = -time.process_time()
        if trainer.global_step != trainer.max_steps - 1:
            return
        self.found["cpu_seconds"] = self.found.get("cpu_seconds", 0.0) + time.process_time()
        if pl_module.device.type == "cpu":  # before what is noted of the last step takes memory
            status = Path("/proc/self/status").read_text()
            peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            self.found["peak_gib"] = int(peak.split()[1]) / 2**20
        if not self.gradient:
            self._profile = profile(activities=list(_activities()), acc_events=True)
            self._profile.start()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if not self.gradient:
            return
        gradients = [p.grad.flatten() for p in pl_module.trained_parameters.values()]
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir, f"gradient-{trainer.global_step}.pt")
            torch.save(torch.cat(gradients).cpu(), path)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step != trainer.max_steps:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
            self.found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            self.found["reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
        if not self.gradient:
            self._profile.stop()
            self.found |= read_waits(self._profile.events())
        path = Path(trainer.default_root_dir, f"rank-{trainer.global_rank}.json")
        path.write_text(json.dumps(self.found))


def _activities() -> list[ProfilerActivity]:
    on_card = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    return [ProfilerActivity.CPU, *on_card]


def read_waits(events: Any) -> dict[str, Any]:
    """Return the seconds that a step's communication took, and those that it alone took.

    Of a card, also those in which it did nothing at all, and its longest kernels.
    """
    on_card = [x for x in events if x.device_type == DeviceType.CUDA and x.time_range.elapsed_us()]
    if not on_card:
        gathered = [x.time_range.elapsed_us() for x in events if x.name.startswith("gloo:")]
        return {"communication": sum(gathered) / 1e6, "alone": sum(gathered) / 1e6}
    spans = [(x.time_range.start, x.time_range.end, "nccl" in x.name.lower()) for x in on_card]
    whole = measure_union(x[:2] for x in spans)
    computing = measure_union(x[:2] for x in spans if not x[2])
    speaking = measure_union(x[:2] for x in spans if x[2])
    span = max(x[1] for x in spans) - min(x[0] for x in spans)
    longest: Counter[str] = Counter()
    for event in on_card:
        longest[event.name[:80]] += event.time_range.elapsed_us()
    return {
        "communication": speaking / 1e6,
        "alone": (whole - computing) / 1e6,
        "idle": (span - whole) / 1e6,
        "longest_ms": {name: microseconds / 1e3 for name, microseconds in longest.most_common(12)},
    }


def measure_union(spans: Any) -> float:
    """Return the length of what some spans cover."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def write_base(config: PretrainedConfig, source: Path, folder: Path) -> None:
    """Write random weights, a file a layer, unless they are there."""
    if (folder / "model.safetensors.index.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if k not in tied}
    files: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for part, names in groupby(shapes, key=lambda name: ".".join(name.split(".")[:3])):
        where = part if part.startswith("model.layers.") else "others"
        files.setdefault(where, []).extend((name, shapes[name]) for name in names)
    jobs = [(seed, folder, *item) for seed, item in enumerate(files.items())]
    processes = max(1, min(len(jobs), (os.cpu_count() or 2) - 1))
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.starmap(write_file, jobs)
    places = {name: f"{where}.safetensors" for where, all_ in files.items() for name, _ in all_}
    config.save_pretrained(folder)
    for path in source.glob("*token*"):
        shutil.copy(path, folder)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_file(
    seed: int, folder: Path, name: str, tensors: list[tuple[str, tuple[int, ...]]]
) -> None:
    """Write one file of the base."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    made = {
        tensor: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.035, 0.035, generator=generator)
        for tensor, shape in tensors
    }
    save_file(made, folder / f"{name}.safetensors", metadata={"format": "pt"})


def start(
    base: Path, rows: str, folder: Path, arm: str, first: int, options: Any
) -> subprocess.Popen[bytes]:
    """Begin to train an arm, on cards from the first on."""
    devices, strategy = read_arm(arm)
    shutil.rmtree(folder, ignore_errors=True)
    more = list(TINY if options.tiny else ("--data.batch_size", str(ROWS)))
    if options.gradient:
        more += ["--trainer.max_steps", "2", "--data.batching", "padded", "--data.batch_size", "1"]
        more += ["--data.accumulate_grad_batches", str(GRADIENT_ROWS // devices)]
        more += ["--model.optimizer", "torch.optim.SGD", "--model.warmup_ratio", "0"]
        more += ["--model.lora.dropout", "0", "--model.max_grad_norm", "0"]
        more += ["--trainer.precision", "32-true", "--model.speed.compile", "false"]
    else:
        more += ["--trainer.max_steps", str(options.steps)]
    if options.answers:
        more += ["--trainer.callbacks+", "lit_sft.GenerationEval"]
        more += ["--trainer.callbacks.eval_rows", str(options.answers)]
    own = ["--trainer.callbacks+", "scaling.Measure"]
    own += ["--trainer.callbacks.gradient", str(options.gradient).lower()]
    if options.limit_gib:
        own += ["--trainer.callbacks.limit_gib", str(options.limit_gib)]
    command = [
        *(sys.executable, "-m", "lit_sft", "fit", "--report", "false"),
        *("--model.base_model", str(base), "--data.task", "lit_sft.GSM8K"),
        *("--data.task.init_args.path", rows, "--data.max_length", "512"),
        *("--data.accumulate_grad_batches", "1", "--trainer.limit_val_batches", "0"),
        *("--trainer.devices", str(devices), "--trainer.strategy", strategy),
        *("--trainer.callbacks", "lit_sft.GradientCheckpointing"),
        *("--trainer.default_root_dir", str(folder), "--trainer.num_sanity_val_steps", "0"),
        *(*own, *more, *options.more),
    ]
    paths = f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', ROOT)}"
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    there = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(first + devices)))
    cards = ",".join(there.split(",")[first : first + devices])
    environment = os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": cards}
    with log.open("w") as file:
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=file, stderr=file)


def read_arm(arm: str) -> tuple[int, str]:
    """Return the devices and the strategy of an arm such as `2:ddp`."""
    devices, _, strategy = arm.partition(":")
    return int(devices), strategy or "auto"


def list_together(arms: list[str], is_alone: bool) -> list[list[tuple[int, str, int]]]:
    """Return lists of arms that run at the same time: their numbers, names and first cards."""
    lists: list[list[tuple[int, str, int]]] = []
    first = cards = torch.cuda.device_count()
    for number, arm in enumerate(arms):
        devices = read_arm(arm)[0]
        if is_alone or first + devices > cards:
            lists.append([])
            first = 0
        lists[-1].append((number, arm, first))
        first += devices
    return lists


def describe(folder: Path, devices: int, strategy: str) -> str:
    """Return a line of the table."""
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    if len(ranks) < devices:
        return f"| {devices} | {strategy} | failed: {find_reason(folder):.300} |"
    with (folder / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row["train/loss"]]
    speeds = [float(row["train/tokens_per_second"]) for row in steps]
    steady = speeds[len(speeds) // 2 : -1] or speeds[-1:]  # passes of a new size take longer
    answers = [row["val/eval_seconds"] for row in rows if row.get("val/eval_seconds")]

    def most(name: str) -> float:
        return max(rank.get(name, 0.0) for rank in ranks)

    loading = max(rank["loaded"] - rank["began"] for rank in ranks)
    cells = [
        *(devices, strategy, f"{statistics.median(steady):,.0f}", f"{most('peak_gib'):.2f}"),
        *(f"{most('reserved_gib'):.2f}", f"{most('base_gib'):.2f}", f"{most('load_peak_gib'):.2f}"),
        *(f"{loading:.1f}", f"{float(steps[0]['train/loss']):.6f}"),
        *(f"{most('communication'):.3f}", f"{most('alone'):.3f}", f"{most('idle'):.3f}"),
        " ".join(answers) or "-",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def describe_gradients(first: Path, arms: list[tuple[str, Path]]) -> list[str]:
    """Return how far the gradients of some arms are from those of the first, as shares."""
    lines = []
    for step in (0, 1):
        wanted = read_gradient(first, step)
        for arm, folder in arms:
            got = read_gradient(folder, step)
            if got is None or wanted is None:
                why = f"failed: {find_reason(folder):.300}" if got is None else "the first failed"
                lines.append(f"| {step + 1} | {arm} | | {why} |")
                continue
            off = ((got - wanted).norm() / wanted.norm()).item()
            lines.append(f"| {step + 1} | {arm} | {wanted.norm().item():.6f} | {off:.2e} |")
    return lines


def read_gradient(folder: Path, step: int) -> torch.Tensor | None:
    """Return what an arm has left of a step, or None if it failed before."""
    path = folder / f"gradient-{step}.pt"
    return torch.load(path).double() if path.is_file() else None


def find_reason(folder: Path) -> str:
    """Return the line of an arm's log that says why it failed."""
    log = folder.with_suffix(".log").read_text().strip().splitlines()
    return next((x for x in reversed(log) if "rror" in x), log[-1] if log else "nothing")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="a folder with config.json and a tokenizer")
    parser.add_argument("--rows", required=True, help="a folder with GSM8K's train.jsonl")
    parser.add_argument("--shape", choices=SHAPES, default="3b")
    parser.add_argument("--arms", nargs="+", default=["1:auto", "2:ddp", "2:fsdp2"])
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/scaling"))
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--answers", type=int, default=0, help="rows to answer before and after")
    parser.add_argument("--limit_gib", type=float, help="memory of each device that may be used")
    parser.add_argument("--gradient", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a dry run on the CPU")
    arguments = sys.argv[1:]
    place = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:place])
    options.more = arguments[place + 1 :]
    shape = "tiny" if options.tiny else options.shape
    source, rows = Path(options.config).resolve(), str(Path(options.rows).resolve())
    config = AutoConfig.from_pretrained(source, **SHAPES[shape])
    base = options.folder / f"base-{shape}"
    started = time.time()
    write_base(config, source, base)
    print(f"base {shape}: {time.time() - started:.0f} s\n", flush=True)
    columns = (
        "devices | strategy | tokens/s | peak GiB | reserved | base GiB | peak of loading | "
        "seconds to load | first loss | s in communication | s in it alone | s idle | s of answers"
    )
    if options.gradient:
        columns = "step | arm | norm of the first arm | off by"
    print(f"| {columns} |\n|{'---|' * len(columns.split(' | '))}", flush=True)
    folders = [options.folder / f"run-{number}" for number in range(len(options.arms))]
    for together in list_together(options.arms, not options.gradient):
        running = [start(base, rows, folders[n], arm, card, options) for n, arm, card in together]
        for process in running:
            process.wait()
        if options.gradient:
            ended = [(arm, folders[n]) for n, arm, _ in together]
            print("\n".join(describe_gradients(folders[0], ended)), flush=True)
        else:
            print(describe(folders[together[0][0]], *read_arm(together[0][1])), flush=True)


if __name__ == "__main__":
    main()
