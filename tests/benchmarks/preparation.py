"""What does encoding with a proven mask cost, beside TRL's `assistant_only_loss`?

Both read GSM8K's training rows from the file and turn them into ids and labels, each in a process
of its own, without a cache; the labels must come out the same. `make bench` runs it.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from speed import ROOT, require_data

from lit_sft import GSM8K, load_tokenizer
from lit_sft.data.encoded_rows import encode_rows
from lit_sft.data.row_policy import RowPolicy
from lit_sft.data.splits import read_conversations, read_split
from lit_sft.types import IGNORE_INDEX

Prepared = tuple[float, list[list[int]]]
"""CPU seconds, and the labels of every row."""


def prepare_here(data: Path) -> Prepared:
    """Encode with `lit_sft`, the mask proven for every row."""
    tokenizer = load_tokenizer(str(data / "llama-3.2-3b"))
    start = time.process_time()
    task = GSM8K(str(data / "gsm8k"))
    conversations = read_conversations(task, read_split(task, "train", val_rows=0))
    rows = encode_rows(tokenizer, conversations, RowPolicy(512))
    seconds = time.process_time() - start
    return seconds, [rows[i].labels for i in range(len(rows))]


def prepare_with_trl(data: Path) -> Prepared:
    """Encode as `SFTTrainer` does it, with the template that TRL brings for Llama 3."""
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer, chat_template_utils

    tokenizer = load_tokenizer(str(data / "llama-3.2-3b"))
    tokenizer.chat_template = chat_template_utils.llama3_training_chat_template
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**tiny, num_attention_heads=1, num_key_value_heads=1))
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        options = SFTConfig(
            folder, assistant_only_loss=True, max_length=512, bf16=False, use_cpu=True
        )
        seconds = 0.0
        prepare = SFTTrainer._prepare_dataset

        def timed(*args: object) -> object:
            nonlocal seconds
            start = time.process_time()
            try:
                return prepare(*args)
            finally:
                seconds += time.process_time() - start

        SFTTrainer._prepare_dataset = timed  # the rest of the trainer is no preparation
        start = time.process_time()
        rows = datasets.load_dataset(
            "json", data_files=str(data / "gsm8k" / "train.jsonl"), split="train", cache_dir=folder
        )
        rows = rows.map(
            lambda row: {
                "messages": [
                    {"role": "user", "content": row["question"]},
                    {"role": "assistant", "content": row["answer"]},
                ]
            },
            remove_columns=rows.column_names,
        )
        seconds += time.process_time() - start
        trainer = SFTTrainer(
            model=model, args=options, train_dataset=rows, processing_class=tokenizer
        )
        return seconds, list(trainer.train_dataset["labels"])


def main() -> None:
    """Print a table of both, the median of the repeats."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    require_data(options.data)
    arms: dict[str, Callable[[Path], Prepared]] = {
        "TRL, `assistant_only_loss`": prepare_with_trl,
        "lit_sft, mask proven": prepare_here,
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(options.repeats):
        labels = []
        for name, arm in arms.items():
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                spent, rows = pool.submit(arm, options.data).result()
            seconds[name].append(spent)
            labels.append(rows)
        if labels[0] != labels[1]:
            raise SystemExit("the two do not supervise the same tokens")
    supervised = sum(label != IGNORE_INDEX for row in labels[0] for label in row)
    print(f"{len(labels[0]):,} rows of GSM8K, {supervised:,} supervised tokens, the same in both\n")
    print("| preparation | CPU s | TRL ÷ |\n|---|---|---|")
    theirs = statistics.median(seconds["TRL, `assistant_only_loss`"])
    for name, spent in seconds.items():
        own = statistics.median(spent)
        spread = f"{min(spent):.2f} to {max(spent):.2f}"
        print(f"| {name} | {own:.2f} ({spread}) | {theirs / own:.1f} |")


if __name__ == "__main__":
    main()
