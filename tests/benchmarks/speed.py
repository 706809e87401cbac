"""Is it ahead of TRL on the same work, and how far from what this machine can do?

`make bench` trains random Llamas on GSM8K, encoded with the real Llama 3 tokenizer, in every arm of
`arms.py`. It counts the CPU seconds of a process rather than the seconds on the wall, which on a
shared machine measure the neighbours. Writes `bench.json` and prints a table.
"""

import argparse
import json
import math
import multiprocessing
import platform
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from arms import ARMS, LORA, Arm, Job, run_arm
from floor import count_flops, list_matmuls, measure_rates
from tables import format_case, format_scaling
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from lit_sft import GSM8K, load_tokenizer
from lit_sft.cli.notices import silence_known_notices
from lit_sft.data.encoded_rows import encode_rows
from lit_sft.data.row_policy import RowPolicy
from lit_sft.data.splits import read_conversations, read_split
from lit_sft.types import IGNORE_INDEX, Example

ROOT = Path(__file__).parents[2]
TOLERANCE = {"bf16-mixed": 1e-2, "32-true": 1e-4}
"""Of the loss of the first step, between arms."""
NORM_TOLERANCE = 1e-2
"""Of its gradient norm, relative: TRL's gradients of a quantised base's adapter are bfloat16."""


class Case(NamedTuple):
    """A random base, and how a step is cut."""

    layers: int
    hidden: int
    vocabulary: int
    precision: str
    window_rows: int = 16

    def make_config(self) -> LlamaConfig:
        """Return a config with Llama 3.2 3B's proportions."""
        heads = self.hidden // 64
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=math.ceil(self.hidden * 8 / 3 / 64) * 64,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 3 or 1,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=0.05,  # so that the loss is far from that of equal logits
        )


CASES = {
    "v128k-bf16": Case(4, 256, 128_256, "bf16-mixed"),
    "v128k-fp32": Case(4, 256, 128_256, "32-true"),
    "v1k-fp32": Case(4, 256, 1_024, "32-true"),
    "12x768-bf16": Case(12, 768, 32_000, "bf16-mixed"),
}
SCALING = [CASES["v1k-fp32"]._replace(window_rows=rows) for rows in (16, 64, 256)]


def main() -> None:
    """Run the cases, and print and write what came out."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    silence_known_notices()
    disable_progress_bar()
    report: dict[str, Any] = {"machine": describe_machine(options.threads), "cases": {}}
    print(" | ".join(f"{key}: {value}" for key, value in report["machine"].items()), flush=True)
    for name in options.cases:
        if name == "scaling":
            fast = {"lit_sft fast": ARMS["lit_sft fast"]}
            runs = [run_case(case, fast, options) for case in SCALING]
            report["cases"][name] = runs
            print(f"\n**{name}** (v1k-fp32)\n\n{format_scaling(runs)}", flush=True)
        else:
            report["cases"][name] = run_case(CASES[name], ARMS, options)
            print(f"\n**{name}**\n\n{format_case(report['cases'][name])}", flush=True)
        (ROOT / "bench.json").write_text(json.dumps(report, indent=1) + "\n")


def parse_options() -> argparse.Namespace:
    """Read the command line, and stop where there is no data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=[*CASES, "scaling"], metavar="CASE")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps a repeat")
    parser.add_argument("--quick", action="store_true", help="one small case, to see that it runs")
    parser.add_argument("--threads", type=int, default=1, help="one by default: CPUs are shared")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared")
    options = parser.parse_args()
    if options.quick:
        options.cases, options.repeats, options.steps = ["v1k-fp32"], 1, 1
    options.cases = options.cases or [*CASES, "scaling"]
    require_data(options.data)
    return options


def require_data(folder: Path) -> None:
    """Stop where the real rows or the real tokenizer are missing."""
    for needed in ("gsm8k/train.jsonl", "llama-3.2-3b/tokenizer.json"):
        if not (folder / needed).is_file():
            raise SystemExit(f"skipped: there is no {needed} in {folder}; name a folder by --data")


def describe_machine(threads: int) -> dict[str, str]:
    """Return what the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ")[1] for line in info if line.startswith("model name")), "?")
    packages = {name: version(name) for name in ("torch", "transformers", "bitsandbytes", "trl")}
    return {"cpu": model, "threads": str(threads), "python": platform.python_version(), **packages}


def run_case(case: Case, arms: dict[str, Arm], options: argparse.Namespace) -> dict[str, Any]:
    """Run all arms in turns, and return the work of a step and the figures of each arm."""
    windows = read_windows(options.data, case, count=1 + options.steps)
    config, steps = case.make_config(), options.steps
    rows = [row for window in windows[1:] for row in window]
    lengths = [len(row.input_ids) for row in rows]
    tokens = sum(lengths) / steps
    supervised = sum(label != IGNORE_INDEX for row in rows for label in row.labels[1:]) / steps
    matmuls = list_matmuls(config, LORA["r"], round(tokens), round(supervised))
    dtype = torch.float32 if case.precision == "32-true" else torch.bfloat16
    with tempfile.TemporaryDirectory() as folder:
        make_base(config, Path(folder))
        job = Job(
            base=f"{folder}/base",
            adapter=f"{folder}/adapter",
            tokenizer=str(options.data / "llama-3.2-3b"),
            precision=case.precision,
            windows=[windows[0], *windows[1:] * options.repeats],
            segments=[1] + [steps] * options.repeats,
            threads=options.threads,
        )
        with started(arms, job) as pipes:
            first = {name: take_turn(name, pipe) for name, pipe in pipes.items()}
            require_same_work(first, TOLERANCE[case.precision])
            figures: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
            rates = []
            for _ in range(options.repeats):
                rates.append(measure_rates(matmuls, dtype))
                for name, pipe in pipes.items():
                    figures[name].append(take_turn(name, pipe))
    return {
        "case": case._asdict(),
        "tokens_per_step": tokens,
        "supervised_per_step": supervised,
        "flops_per_step": count_flops(
            config, matmuls, sum(t * (t + 1) / 2 for t in lengths) / steps
        ),
        "matmul_rate": statistics.median(own for own, _ in rates),
        "square_matmul_rate": statistics.median(square for _, square in rates),
        "first_step": first,
        "arms": figures,
    }


def read_windows(data: Path, case: Case, count: int) -> list[list[Example]]:
    """Encode the first rows of GSM8K; a token id beyond a small vocabulary wraps around."""
    task = GSM8K(str(data / "gsm8k"))
    rows = list(islice(read_split(task, "train", val_rows=0), count * case.window_rows))
    tokenizer = load_tokenizer(str(data / "llama-3.2-3b"))
    encoded = encode_rows(tokenizer, read_conversations(task, rows), RowPolicy(512))
    encoded.input_ids %= case.vocabulary
    examples = [encoded[i] for i in range(len(rows))]
    size = case.window_rows
    return [examples[start : start + size] for start in range(0, len(rows), size)]


def make_base(config: LlamaConfig, folder: Path) -> None:
    """Write a random base, and an adapter whose both halves are random, so that it counts."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = LlamaForCausalLM(config).bfloat16()
    base.save_pretrained(folder / "base")
    lora = LoraConfig(
        r=LORA["r"],
        lora_alpha=LORA["alpha"],
        lora_dropout=LORA["dropout"],
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # to bfloat16, in which TRL trains the adapter of a quantised base
            parameter.data = parameter.data.mul(0.1).bfloat16().float()
    model.save_pretrained(folder / "adapter")


@contextmanager
def started(arms: dict[str, Arm], job: Job) -> Iterator[dict[str, Connection]]:
    """Start a process for each arm. They end by themselves, or when nobody listens any more."""
    spawn, processes, pipes = multiprocessing.get_context("spawn"), [], {}
    try:
        for name, arm in arms.items():
            pipes[name], theirs = spawn.Pipe()
            process = spawn.Process(target=run_arm, args=(arm, job, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
        yield pipes
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join()


def take_turn(name: str, pipe: Connection) -> dict[str, Any]:
    """Let an arm run its next segment, and return its figures."""
    try:
        pipe.send("go")
        answer = pipe.recv()
    except (EOFError, BrokenPipeError):
        answer = "it ended without a word; was it killed for memory?"
    if isinstance(answer, str):
        raise SystemExit(f"{name}: {answer}")
    return answer


def require_same_work(first: dict[str, dict[str, Any]], tolerance: float) -> None:
    """Stop unless all arms had the same loss in the first step, taken without dropout."""
    losses = {name: figures["loss"] for name, figures in first.items()}
    norms = {name: figures["grad_norm"] for name, figures in first.items()}
    same_loss = max(losses.values()) - min(losses.values()) <= tolerance
    same_norm = max(norms.values()) <= min(norms.values()) * (1 + NORM_TOLERANCE)
    if not (same_loss and same_norm):
        raise SystemExit(f"the arms do not train on the same: losses {losses}, norms {norms}")


if __name__ == "__main__":
    main()
