"""Time the recipe and its fast settings on one CUDA GPU, without network, `datasets` or `wandb`.

    PYTHONPATH=. python tests/gpu/speed.py --config ../shared/llama-3.2-3b \
        --rows ../shared/gsm8k/train.jsonl

makes a random model of the config's size on the device, trains each arm for a few optimizer steps
of 16 rows through `SFTModule` and a Lightning `Trainer`, and prints seconds a step by CUDA events,
peak memory, kernel launches, and the kernels that take longest. `--tiny` runs the same on a CPU,
with a model of two layers, to see that the script works.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.utils.logging import disable_progress_bar

from lit_sft import (
    GSM8K,
    GradientCheckpointing,
    Quantization,
    SFTModule,
    Speed,
    encode_chat,
    load_tokenizer,
)
from lit_sft.cli.notices import silence_known_notices
from lit_sft.data.windows import PackedWindows, WindowLoader
from lit_sft.model.fast.memory import Policy
from lit_sft.types import IGNORE_INDEX, Example

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("benchmarks", "parity")]
from floor import count_flops, list_matmuls
from plain_module import PlainModule

WINDOW_ROWS, RANK, WARMUP_STEPS, SHOWN_KERNELS = 16, 32, 2, 15
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
}  # fmt: skip


class Arm(NamedTuple):
    """Settings that are compared."""

    max_tokens_per_pass: int | None
    """None leaves it open."""
    recomputed: Policy
    model: dict[str, Any]
    kind: type[SFTModule] = SFTModule


EAGER, COMPILED = {"speed": Speed(compile=False)}, {"speed": Speed(compile=True)}
QUANTIZED = {"quantization": Quantization(weight_cache="none")}
ARMS = {
    "plain": Arm(2048, "all", EAGER | QUANTIZED, PlainModule),
    "eager": Arm(8192, "none", EAGER),
    "shipped": Arm(None, "auto", COMPILED),  # what `auto` comes to in a run of three epochs
    "lean": Arm(2048, "all", EAGER | QUANTIZED),
    "lean, graphs, 512 a pass": Arm(512, "all", COMPILED | QUANTIZED),
    "lean, graphs, 1,024 a pass": Arm(1024, "all", COMPILED | QUANTIZED),
    "lean, graphs, 2,048 a pass": Arm(2048, "all", COMPILED | QUANTIZED),
    "lean, graphs, 4,096 a pass": Arm(4096, "all", COMPILED | QUANTIZED),
}


class Stopwatch(pl.Callback):
    """Time each step after the first few, and profile the one after those."""

    def __init__(self, device: torch.device, timed_steps: int) -> None:
        self.device, self.timed_steps = device, timed_steps
        self.marks: list[Any] = []
        self.peak_bytes = 0
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self.profiler = profile(activities=activities)

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == WARMUP_STEPS:
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            self._mark()
        if trainer.global_step == WARMUP_STEPS + self.timed_steps:
            if self.device.type == "cuda":
                self.peak_bytes = torch.cuda.max_memory_allocated(self.device) + count_pool_bytes()
            self.profiler.start()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step > WARMUP_STEPS + self.timed_steps:
            self.profiler.stop()
        elif trainer.global_step > WARMUP_STEPS:
            self._mark()

    def seconds(self) -> list[float]:
        """Return the seconds of each timed step, from the end of one to the end of the next."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        if self.device.type != "cuda":
            return [end - start for start, end in pairs]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairs]

    def launches(self) -> int:
        """Return how many kernels the profiled step launched."""
        return sum(e.count for e in self.profiler.key_averages() if e.key in LAUNCHES)

    def longest(self) -> list[tuple[str, int, float]]:
        """Return name, count and milliseconds of the longest kernels, or a CPU's operators."""
        on_device = self.device.type == "cuda"
        kind = DeviceType.CUDA if on_device else DeviceType.CPU
        figures = [
            (
                e.key,
                e.count,
                (e.self_device_time_total if on_device else e.self_cpu_time_total) / 1e3,
            )
            for e in self.profiler.key_averages()
            if e.device_type == kind
        ]
        return sorted(figures, key=lambda figure: -figure[2])[:SHOWN_KERNELS]

    def _mark(self) -> None:
        if self.device.type != "cuda":
            self.marks.append(time.perf_counter())
            return
        self.marks.append(torch.cuda.Event(enable_timing=True))
        self.marks[-1].record()


def count_pool_bytes() -> int:
    """Return what the memory of graphs takes besides, which counts as free between two replays."""
    segments = torch.cuda.memory_snapshot()
    own = [x for x in segments if tuple(x["segment_pool_id"]) != (0, 0)]
    return sum(x["total_size"] - x["allocated_size"] for x in own)


def main() -> None:
    """Print the table of all arms, then the profile of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="a folder with config.json")
    parser.add_argument(
        "--rows", type=Path, required=True, help="jsonl: input_ids/labels, or GSM8K"
    )
    parser.add_argument("--tokenizer", help="for GSM8K's text; without one, the config's folder")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each arm")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--limit_gib", type=float, help="memory of the device that may be used")
    parser.add_argument("--deterministic", action="store_true", help="as the command line does")
    parser.add_argument("--peers", type=Path, help="lines of RESULT and a JSON object, to compare")
    parser.add_argument("--tiny", action="store_true", help="a dry run on the CPU")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device; --tiny runs on a CPU")
    silence_known_notices()
    disable_progress_bar()
    device = torch.device("cpu" if options.tiny else "cuda")
    config = AutoConfig.from_pretrained(options.config, **(TINY if options.tiny else {}))
    windows = read_windows(options, config.vocab_size)
    rate = measure_matmul_rate(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}; bf16 matmul of 8192³: {rate / 1e12:.3g} TFLOP/s\n")
    print("| arm | s / step | tokens / s | of the matmul rate | peak GiB | launches / step |")
    print("|---|---|---|---|---|---|")
    watches = {}
    with tempfile.TemporaryDirectory() as folder:
        write_base(config, device, folder)
        if options.limit_gib:
            torch.cuda.empty_cache()
            share = options.limit_gib * 2**30 / torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(share)
        for arm in options.arms:
            watches[arm] = train(
                ARMS[arm], folder, windows, device, options.steps, options.deterministic
            )
            print(format_row(arm, watches[arm], windows, config, rate), flush=True)
    if options.peers:
        print_ratios(options.peers, watches, windows)
    for arm, watch in watches.items():
        print(f"\n{arm}: what took longest in one step\n\n| ms | calls | |\n|---|---|---|")
        for kernel, count, milliseconds in watch.longest():
            print(f"| {milliseconds:.2f} | {count:,} | `{kernel:.90}` |")


def print_ratios(peers: Path, watches: dict[str, Stopwatch], windows: list[list[Example]]) -> None:
    """Print how many times as fast as other trainers the arms are.

    Args:
        peers: Lines such as `RESULT {"arm": "trl", "tok_s": 1363, "peak_gib": 2.85}` among others.
        watches: Of the arms.
        windows: What all were trained on.
    """
    lines = [line.split(" ", 1)[1] for line in peers.open() if line.startswith("RESULT ")]
    print("\n| peer | tokens / s | peak GiB |", *(f" times, {arm} |" for arm in watches), sep="")
    print("|---|---|---|", "---|" * len(watches), sep="")
    for peer in map(json.loads, lines):
        ratios = [count_tokens(x, windows) / peer["tok_s"] for x in watches.values()]
        figures = f"| {peer['arm']} | {peer['tok_s']:,} | {peer['peak_gib']} |"
        print(figures, *(f" {ratio:.1f} |" for ratio in ratios), sep="")


def count_tokens(watch: Stopwatch, windows: list[list[Example]]) -> float:
    """Return the tokens a second of a median step."""
    timed = [row for window in windows[WARMUP_STEPS:-1] for row in window]
    seconds = watch.seconds()
    return sum(len(row.input_ids) for row in timed) / len(seconds) / statistics.median(seconds)


def read_windows(options: argparse.Namespace, vocabulary: int) -> list[list[Example]]:
    """Return the rows of each step; ids beyond a small vocabulary wrap around."""
    count = (WARMUP_STEPS + options.steps + 1) * WINDOW_ROWS
    with options.rows.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(count), strict=False)]
    if len(rows) < count:
        raise SystemExit(f"--rows: {options.steps} steps take {count} rows, got {len(rows)}")
    if "input_ids" in rows[0]:
        examples = [Example(row["input_ids"], row["labels"]) for row in rows]
    else:
        tokenizer = load_tokenizer(options.tokenizer or options.config)
        examples = [encode_chat(tokenizer, GSM8K().messages(row)) for row in rows]
    wrapped = [
        Example(
            [token % vocabulary for token in ids],
            [label if label == IGNORE_INDEX else label % vocabulary for label in labels],
        )
        for ids, labels in examples
    ]
    return [wrapped[start : start + WINDOW_ROWS] for start in range(0, count, WINDOW_ROWS)]


def write_base(config: PretrainedConfig, device: torch.device, folder: str) -> None:
    """Make random weights on the device, and write them where `SFTModule` will find them."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


class Windows(pl.LightningDataModule):
    """Hands out the windows, and says how large its passes may be."""

    batching, batch_size, accumulate_grad_batches, max_length = "padding_free", 4, 4, 512

    def __init__(self, rows: list[Example], steps: Any, tokens: int | None) -> None:
        super().__init__()
        self.rows, self.steps = rows, steps
        self.leaves_passes_open, self.max_tokens_per_pass = tokens is None, tokens or 2048

    def widen_passes(self, tokens: int) -> None:
        self.max_tokens_per_pass = tokens

    def train_dataloader(self) -> WindowLoader:
        return WindowLoader(
            PackedWindows(self.rows, self.max_tokens_per_pass),
            batch_size=None,
            sampler=self.steps,
            pin_memory=torch.cuda.is_available(),
        )


def train(
    arm: Arm,
    base: str,
    windows: list[list[Example]],
    device: torch.device,
    timed_steps: int,
    deterministic: bool,
) -> Stopwatch:
    """Train an arm from its own load of the base to the profiled step."""
    rows: Any = [row for window in windows for row in window]
    steps: Any = [range(k, k + WINDOW_ROWS) for k in range(0, len(rows), WINDOW_ROWS)]
    stopwatch = Stopwatch(device, timed_steps)
    trainer = pl.Trainer(
        accelerator=device.type,
        devices=1,
        precision="bf16-mixed",
        max_steps=len(steps),
        callbacks=[stopwatch, GradientCheckpointing(arm.recomputed)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        deterministic=deterministic,
    )
    module = arm.kind(base, **arm.model)
    trainer.fit(module, Windows(rows, steps, arm.max_tokens_per_pass))
    del module, trainer
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return stopwatch


def format_row(
    name: str,
    watch: Stopwatch,
    windows: list[list[Example]],
    config: PretrainedConfig,
    rate: float,
) -> str:
    """Return an arm's row: the median of its steps, the arithmetic of an average one."""
    timed = [row for window in windows[WARMUP_STEPS:-1] for row in window]
    lengths, steps = [len(row.input_ids) for row in timed], len(watch.seconds())
    tokens = sum(lengths) / steps
    supervised = sum(label != IGNORE_INDEX for row in timed for label in row.labels[1:]) / steps
    matmuls = list_matmuls(config, RANK, round(tokens), round(supervised))
    flops = count_flops(config, matmuls, sum(t * (t + 1) / 2 for t in lengths) / steps)
    seconds = watch.seconds()
    middle = statistics.median(seconds)
    return (
        f"| {name} | {middle:.3f} ({min(seconds):.3f} to {max(seconds):.3f}) | "
        f"{count_tokens(watch, windows):,.0f} | {flops / middle / rate:.2f} | "
        f"{watch.peak_bytes / 2**30:.2f} | {watch.launches():,} |"
    )


def measure_matmul_rate(device: torch.device) -> float:
    """Return the floating-point operations a second of a large square product in bfloat16."""
    side, times = (8192, 20) if device.type == "cuda" else (256, 2)
    a = torch.randn(side, side, dtype=torch.bfloat16, device=device)
    for repeat in range(times + 3):
        if repeat == 3:
            _synchronize(device)
            start = time.perf_counter()
        a @ a
    _synchronize(device)
    return 2 * side**3 * times / (time.perf_counter() - start)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
