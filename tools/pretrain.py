"""Pre-train the embedded base model: `python -m tools.pretrain --output DIR`.

The base is a base: it reads plain `Problem: … Solution: …` documents and never a chat, so the rows
of the chat tokens, tied between embedding and head, stay as untrained as those of a real base.
"""

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import (
    AttentionInterface,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lit_sft.model.base_model import Quantization, load_base
from lit_sft.toy.word_problems import WordProblems
from tools.corpus import BOS, EOS, PAD, build_tokenizer, make_batches, make_prompt


class Round(NamedTuple):
    """One rise and fall of the learning rate; the next round starts from its saved weights."""

    steps: int
    """Optimizer steps."""
    rate: float
    """Scales the learning rates."""


ROUNDS = (Round(3200, 1.0), Round(1800, 0.5), Round(5000, 0.5))
"""The first learns to read the stories, the others mend its sums. The shipped base took the last on
a GPU, whose kernels give no two runs the same bits."""


def main() -> None:
    """Train, save, load again, and print the exact match on problems that were never trained on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished base")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")
    parser.add_argument("--steps", type=int, help="steps of each round, for a quick try")
    parser.add_argument("--rounds", type=int, default=0, help="rounds that the output has taken")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(args.device == "cpu")

    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    if args.rounds:
        model = LlamaForCausalLM.from_pretrained(args.output, dtype=torch.float32)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    for number, plan in enumerate(ROUNDS[args.rounds :], start=args.rounds):
        model.to(torch.device(args.device))  # type: ignore[arg-type]
        train(model, tokenizer, args.steps or plan.steps, plan.rate, args.seed + number)
        save(model, tokenizer, args.output)
        model = LlamaForCausalLM.from_pretrained(args.output, dtype=torch.float32)
    for stored in (Quantization("none"), Quantization("nf4")):
        base = load_base(str(args.output), stored, torch.bfloat16, torch.device("cpu"))
        print(f"{stored}: exact match {measure(base, tokenizer):.3f} on 500 held-out problems")


def build_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Return a small Llama with random weights, its embedding tied to its head."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, steps: int, rate: float, seed: int
) -> None:
    """Train with Muon on the matrices of the layers and AdamW on the rest, under autocast."""
    AttentionInterface.register("float32_causal", attend)
    model.set_attn_implementation("float32_causal")
    device = model.device
    forward = torch.compile(model.forward, dynamic=True) if device.type == "cpu" else model.forward
    inner = {n for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n}
    optimizers = [
        torch.optim.Muon(
            [p for n, p in model.named_parameters() if n in inner],
            lr=0.01 * rate,
            weight_decay=0.01,
        ),
        torch.optim.AdamW(
            [p for n, p in model.named_parameters() if n not in inner],
            lr=3e-3 * rate,
            betas=(0.9, 0.98),
            weight_decay=0.01,
        ),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: scale_rate(step, steps))
        for o in optimizers
    ]
    started = time.monotonic()
    batches = make_batches(tokenizer, seed)
    for step in range(1, steps + 1):
        ids, weights = (x.to(device) for x in next(batches))
        with torch.autocast(device.type, torch.bfloat16):
            logits = forward(input_ids=ids, use_cache=False).logits[:, :-1].float()
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        (losses * weights[:, 1:]).sum().div(weights[:, 1:].sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if step % 50 == 0:
            solved = losses[weights[:, 1:] == 1].mean().item()
            print(f"step {step}: loss {solved:.4f}, {time.monotonic() - started:.0f} s", flush=True)


def scale_rate(step: int, steps: int) -> float:
    """Return the learning rate's factor: 50 steps up, level, linear to 0 in the last 60 percent."""
    return min(1.0, (step + 1) / 50, (steps - step) / (0.6 * steps))


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Causal attention in float32: on a CPU its backward is four times as fast as in bfloat16.

    Rows are padded on the right, out of sight of what comes before, so no mask is needed.

    Args:
        module: The attention layer; unused, as `attention_mask` and `kwargs`.
        query: `[rows, heads, tokens, head_dim]`.
        key: `[rows, kv_heads, tokens, head_dim]`.
        value: `[rows, kv_heads, tokens, head_dim]`.
        attention_mask: Unused.
        scaling: Of the scores.
        **kwargs: Unused.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    with torch.autocast(query.device.type, enabled=False):
        mixed = F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), is_causal=True, scale=scaling
        )
    return mixed.transpose(1, 2).contiguous(), None


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write the base as a folder that `from_pretrained` reads, in bfloat16."""
    model.set_attn_implementation("sdpa")
    model.bfloat16().save_pretrained(output)
    tokenizer.save_pretrained(output)
    special = {"bos_token": BOS, "eos_token": EOS}
    (output / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


@torch.no_grad()
def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int = 500) -> float:
    """Return the share of plain-text problems of the test split that greedy decoding solves."""
    model.eval()
    task, right = WordProblems(test_rows=count), 0
    rows = sorted(task.rows("test") or [], key=lambda row: len(row["question"]))
    pad = tokenizer.get_vocab()[PAD]
    for first in range(0, count, 125):
        batch = rows[first : first + 125]
        prompts = [tokenizer.encode(make_prompt(row["question"])) for row in batch]
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
        output = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=ids.ne(pad),
            do_sample=False,
            use_cache=True,
            max_new_tokens=160,
            pad_token_id=pad,
        )
        answers = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
        right += sum(bool(task.grade(row, text)) for row, text in zip(batch, answers, strict=True))
    return right / count


if __name__ == "__main__":
    main()
