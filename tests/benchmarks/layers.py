"""What layers with adapters cost: PEFT's own, each fused alone, those of one input together.

    OMP_NUM_THREADS=1 .venv/bin/python tests/benchmarks/layers.py --layers 12

CPU seconds of a forward and a backward pass of 16 rows, the arms by turns in one process; the least
and the median. With `--vocabulary 512` the head takes next to nothing, and layers are compared. The
arm "alone" is transformers and PEFT by themselves: rows padded, their own attention and their own
loss. Where the head and the attention are ours, "PEFT" has them too.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lit_sft.data.batching import pack_batch, pad_batch
from lit_sft.model.adapter import Lora, attach_lora
from lit_sft.model.fast.attention import use_attention
from lit_sft.model.fast.kernels import make_fast
from lit_sft.model.fast.lora import fuse_lora
from lit_sft.model.fast.memory import count_bytes_per_token
from lit_sft.model.loss import sum_supervised_loss
from lit_sft.types import IGNORE_INDEX, Example

LENGTHS = [110 + 8 * i for i in range(16)]
"""Of the rows: a mean of 170 tokens, as GSM8K's."""


def main() -> None:
    """Measure, and print a table."""
    options = parse_options()
    torch.set_num_threads(1)
    steps = make_arms(options)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(options.repeats + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if repeat:
                seconds[name].append(time.process_time() - start)
    print("| layers | adapter | least | median | times ours |\n|---|---|---|---|---|")
    for name, values in seconds.items():
        ours = seconds[f"{name.partition(' | ')[0]} | together"]
        ratio = statistics.median(values) / statistics.median(ours)
        print(f"| {name} | {min(values):.2f} s | {statistics.median(values):.2f} s | {ratio:.2f} |")


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--targets", nargs="+", default=["attention", "all-linear"])
    parser.add_argument("--float32", action="store_true")
    return parser.parse_args()


def make_arms(options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Return a pass of each arm, by targets and name."""
    dtype = torch.float32 if options.float32 else torch.bfloat16
    rows = draw_rows(options.vocabulary)
    arms: dict[str, Callable[[], None]] = {}
    for targets in options.targets:
        build = partial(build_model, options, dtype, targets)
        for name, fuse in (("PEFT", None), ("each", fuse_lora), ("together", make_fast)):
            model = build(fuse)
            arms[f"{targets} | {name}"] = partial(take_pass, model, rows, dtype, packed=True)
            kept = count_bytes_per_token(model, torch.device("cpu"))
            print(f"{targets}, {name}: {kept:,.0f} bytes a token and layer kept in float32")
        arms[f"{targets} | alone"] = partial(take_pass, build(None), rows, dtype, packed=False)
    return arms


def draw_rows(vocabulary: int) -> list[Example]:
    """Return rows whose last 60 % are learnt."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in LENGTHS]
    return [
        Example(row, [IGNORE_INDEX] * (len(row) * 2 // 5) + row[len(row) * 2 // 5 :]) for row in ids
    ]


def build_model(
    options: argparse.Namespace,
    dtype: torch.dtype,
    targets: str,
    fuse: Callable[[torch.nn.Module], None] | None,
) -> torch.nn.Module:
    """Return a random base with an adapter that counts, with Llama 3.2 3B's proportions."""
    torch.manual_seed(0)
    heads = options.hidden // 64
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=-(-options.hidden * 8 // 3 // 64) * 64,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3 or 1,
        tie_word_embeddings=True,
    )
    base = LlamaForCausalLM(config).to(dtype).requires_grad_(False)
    model = attach_lora(base, Lora(target_modules=targets))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.02
    if fuse is not None:
        fuse(model)
    return model


def take_pass(
    model: torch.nn.Module, rows: list[Example], dtype: torch.dtype, packed: bool
) -> None:
    """Take a forward and a backward pass; padded rows are run by the model's own forward."""
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss: Tensor
        if packed:
            loss = sum_supervised_loss(model, pack_batch(rows)) / 1000
        else:
            use_attention(model, packed=False)
            batch = pad_batch(rows, pad_token_id=0)
            mask = torch.zeros_like(batch["input_ids"])
            for row, length in zip(mask, LENGTHS, strict=True):
                row[:length] = 1
            loss = model(batch["input_ids"], attention_mask=mask, labels=batch["labels"]).loss
    loss.backward()
    model.zero_grad()


if __name__ == "__main__":
    main()
