"""Pre-train the embedded base model: `python -m lit_sft.quickstart.pretrain --output DIR`.

The base is a base: it reads plain `Problem: … Solution: …` documents and never a chat, so the rows
of the chat tokens, tied between embedding and head, stay as untrained as those of a real base.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_sft.tasks.word_problems import WordProblems, make_problem

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"
SPECIAL = (BOS, EOS, PAD, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\r?\n|\s+(?!\S)|\s"
EXTRA_PIECES = ("user", "assistant", "system", "\n\n")
PROMPT_WEIGHT = 0.1
JUNK_SHARE = 0.02


def main() -> None:
    """Train, save, reload, and print the exact match on problems that were never trained on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished base")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="tokens of a step")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)

    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, args.steps, args.seed, args.batch_tokens)
    model.to(torch.bfloat16).save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    reloaded = LlamaForCausalLM.from_pretrained(args.output, dtype=torch.bfloat16)
    print(f"exact match on 500 held-out problems: {measure(reloaded, tokenizer, 500):.3f}")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer in which each word of the problems, and each digit, is a token.

    It has no merges: a piece of text that is not in the vocabulary is spelt in bytes, so that any
    text can be encoded and decoded again.
    """
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    pieces = {piece for i in range(20_000) for piece, _ in split.pre_tokenize_str(document(i))}
    for extra in EXTRA_PIECES:
        pieces |= {piece for piece, _ in split.pre_tokenize_str(extra)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted(pieces - set(alphabet))
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, *words])}
    tokenizer = Tokenizer(BPE(vocabulary, [], ignore_merges=True))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
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
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def prompt(question: str) -> str:
    """Return the plain text that a solution follows."""
    return f"Problem: {question}\nSolution:"


def document(index: int) -> str:
    """Return a problem of the pre-training split as plain text, without BOS and EOS."""
    problem = make_problem("pretrain", index)
    return f"{prompt(problem['question'])} {problem['answer']}"


def make_batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, batch_tokens: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield `input_ids` and loss `weights`, both `[rows, tokens]`, of documents of like length.

    A few documents are junk, tokens drawn at random: as in a real corpus, that is where every row
    of the embedding but those of the chat tokens gets some training.
    """
    rng = random.Random(seed)
    vocabulary = len(tokenizer) - len(SPECIAL)
    marker = tokenizer.encode("\nSolution:", add_special_tokens=False)[-2:]
    for chunk in range(10**9):
        texts = [document(seed * 10**9 + chunk * 4096 + i) + EOS for i in range(4096)]
        rows = []
        for ids in tokenizer(texts)["input_ids"]:
            start = next(i for i in range(len(ids)) if ids[i : i + 2] == marker) + 2
            rows.append((ids, [PROMPT_WEIGHT] * start + [1.0] * (len(ids) - start)))
        for _ in range(int(JUNK_SHARE * 4096)):
            junk = [tokenizer.bos_token_id, *(rng.randrange(vocabulary) for _ in range(32))]
            rows.append((junk, [PROMPT_WEIGHT] * len(junk)))
        rows.sort(key=lambda row: len(row[0]))
        batches, width = [], 0
        batch: list[tuple[list[int], list[float]]] = []
        for row in rows:
            width = len(row[0])
            if (len(batch) + 1) * width > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(row)
        rng.shuffle(batches)
        for batch in batches:
            width = max(len(ids) for ids, _ in batch)
            yield (
                torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch]),
                torch.tensor([w + [0.0] * (width - len(w)) for _, w in batch]),
            )


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    seed: int,
    batch_tokens: int,
) -> None:
    """Train with Muon on the matrices of the layers and AdamW on the rest, in bfloat16 autocast."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.01),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, steps))
        for optimizer in optimizers
    ]
    started = time.monotonic()
    for step, (ids, weights) in enumerate(make_batches(tokenizer, seed, batch_tokens)):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        loss = (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if step % 50 == 0:
            exact = loss_of_solutions(losses, weights)
            print(f"step {step} loss {exact:.4f} seconds {time.monotonic() - started:.0f}", flush=True)
        if step + 1 == steps:
            return


def loss_of_solutions(losses: torch.Tensor, weights: torch.Tensor) -> float:
    return losses[weights[:, 1:] == 1].mean().item()

MUON_LR = 0.02

def _schedule(step: int, steps: int) -> float:
    """Warm up over 50 steps, stay, and fall linearly to zero over the last 40 percent."""
    return min(1.0, (step + 1) / 50, (steps - step) / (0.4 * steps))


@torch.no_grad()
def measure(model, tokenizer, count: int, split="test", max_new_tokens=160) -> float:
    """Return the share of plain-text problems of the test split that greedy decoding solves."""
    model.eval()
    rows = [make_problem(split, i) for i in range(count)]
    task = WordProblems()
    rows.sort(key=lambda row: len(row["question"]))
    right = 0
    for first in range(0, count, 128):
        batch = rows[first : first + 128]
        texts = [prompt(row["question"]) for row in batch]
        inputs = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id)
        answers = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(task.grade(row, answer) for row, answer in zip(batch, answers, strict=True))
    return right / count


if __name__ == "__main__":
    main()
