"""Does it learn as well as a plain PEFT loop, and what do trained chat tokens change?

`make bench-quality` fine-tunes the embedded base as `configs/quickstart.yaml` does, with three
seeds: here with and without trained chat tokens, and in a loop of transformers, PEFT and torch that
pads its batches, takes the whole logits, and shares with this package no more than the encoded rows
and the grading. The rows, their order, the initial adapter and the schedule are the same.
"""

import argparse
import csv
import statistics
import tempfile
from pathlib import Path

import torch
import yaml
from command import ROOT, lit_sft
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, get_cosine_schedule_with_warmup

from lit_sft import SFTDataModule, WordProblems
from lit_sft.data.prompts import decode_answer, find_stop_ids, make_prompts
from lit_sft.evaluation.evaluating import evaluating
from lit_sft.evaluation.exact_match import ExactMatch
from lit_sft.evaluation.generate import generate_greedy
from lit_sft.model.base_model import forbid_packing
from lit_sft.model.device import choose_precision, compute_dtype, describe_device
from lit_sft.paths import locate

CONFIG = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
STEPS, RATE = CONFIG["trainer"]["max_steps"], CONFIG["model"]["learning_rate"]
PRECISION, _ = choose_precision(describe_device(torch.device("cpu")))
DTYPE, AUTOCAST = compute_dtype(PRECISION), PRECISION == "bf16-mixed"
"""As the command line chooses it on a machine without a GPU."""
CHAT_TOKENS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def run_ours(folder: Path, seed: int, tokens: str) -> dict[str, float]:
    """Run the command line, and read the last figures of its file."""
    outcome = lit_sft(
        *("fit", "--config", "configs/quickstart.yaml", "--seed_everything", seed),
        *("--model.trainable_tokens", tokens, "--trainer.default_root_dir", folder),
        timeout=1200,
    )
    if outcome.status:
        raise SystemExit(outcome.stderr)
    with (folder / "logs" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    figures = {name: float(rows[-1][f"val/{name}"]) for name in ("exact_match", "unfinished")}
    return figures | {"loss": statistics.mean(float(row["train/loss"]) for row in rows[-20:])}


def run_plain(seed: int) -> dict[str, float]:
    """Train in a loop written out here."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPE,
    )
    base = locate("lit_sft/tiny")
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=DTYPE, quantization_config=quantization
    )
    forbid_packing(model)  # at the first evaluation
    data = SFTDataModule(
        WordProblems(), tokenizer=base, max_length=256, batching="padded", seed=seed
    )
    data.setup("fit")
    torch.manual_seed(seed)
    lora = LoraConfig(
        r=32,
        lora_alpha=64,
        lora_dropout=0.1,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        trainable_token_indices=data.tokenizer.convert_tokens_to_ids(CHAT_TOKENS),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model.requires_grad_(False), lora).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(0.03 * STEPS), STEPS)
    losses = []
    for window in data.train_dataloader():
        total = sum(batch["num_supervised"] for batch in window)
        losses.append(0.0)
        for batch in window:
            mask = batch["input_ids"] != data.tokenizer.pad_token_id
            with torch.autocast("cpu", torch.bfloat16, enabled=AUTOCAST):
                logits = model(batch["input_ids"], attention_mask=mask.long()).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), batch["labels"][:, 1:].flatten(),
                reduction="sum",
            ) / total  # fmt: skip
            loss.backward()
            losses[-1] += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if len(losses) == STEPS:
            break
    return grade(model, data) | {"loss": statistics.mean(losses[-20:])}


def grade(model: torch.nn.Module, data: SFTDataModule) -> dict[str, float]:
    """Answer and grade the validation rows."""
    prompts = make_prompts(data.task, "val", data.tokenizer, data.val_rows)
    rows = data.task.rows("val")
    with evaluating(model), torch.autocast("cpu", torch.bfloat16, enabled=AUTOCAST):
        answers = generate_greedy(
            model, [p.input_ids for p in prompts],
            find_stop_ids(data.tokenizer, model.config, model.generation_config),
            data.tokenizer.pad_token_id, max_new_tokens=128, max_batch_tokens=32768,
        )  # fmt: skip
    grades = [
        data.task.grade(row, decode_answer(data.tokenizer, answer.token_ids))
        for row, answer in zip(rows, answers, strict=True)
    ]
    metric = ExactMatch()
    metric.update(grades, [answer.finished for answer in answers])
    return metric.compute()


def main() -> None:
    """Print a table of all arms, mean over the seeds and their range."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    with tempfile.TemporaryDirectory() as folder:
        arms = {
            "lit_sft": lambda seed: run_ours(Path(folder) / f"auto{seed}", seed, "auto"),
            "lit_sft, trainable_tokens: none": lambda seed: run_ours(
                Path(folder) / f"none{seed}", seed, "none"
            ),
            "plain PEFT loop": run_plain,
        }
        print(
            "| arm | exact match | unfinished | training loss, last 20 steps |\n|---|---|---|---|"
        )
        for name, arm in arms.items():
            runs = [arm(seed) for seed in seeds]
            cells = [
                f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
                for key in ("exact_match", "unfinished", "loss")
                if (values := [run[key] for run in runs])
            ]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
