"""What an export of a large model takes: CPU seconds, seconds and memory, a row a format.

`python tests/benchmarks/export.py --config ../shared/llama-3.2-3b` makes random weights of the
shape that a folder's `config.json` tells and a checkpoint of an adapter on them, both in a
temporary folder, and exports that. A 3B takes 20 GB there. `--base FOLDER` takes weights that are
there.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch
import yaml
from transformers import AutoConfig

from lit_sft.data.tokenizer import hash_template, load_tokenizer
from lit_sft.export.base_files import BaseFiles, open_base
from lit_sft.export.merge import write_shards
from lit_sft.model.adapter import Lora, attach_lora
from lit_sft.model.base_model import outline
from lit_sft.run.checkpoint_io import AtomicCheckpointIO
from lit_sft.run.folder import RunFolder

TOKENS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
FORMATS = ("adapter", "merged", "vllm", "gguf")


def make_base(config: Path, folder: Path) -> None:
    """Write random bfloat16 weights, a file of a gigabyte at a time."""
    shutil.copytree(config, folder, ignore=shutil.ignore_patterns("*.safetensors*", "*.bin"))
    base = BaseFiles(str(folder), AutoConfig.from_pretrained(config), {}, {})
    tensors = (
        (name, torch.ones(base.shape(name)) if "norm" in name else 0.02 * torch.randn(shape))
        for name in base.names
        for shape in [base.shape(name)]
    )
    write_shards(folder, base, tensors, torch.bfloat16)


def make_run(base_model: Path, root: Path) -> None:
    """Write what a run of the base leaves, with random weights of an adapter."""
    base, tokenizer = open_base(str(base_model)), load_tokenizer(str(base_model))
    ids = tokenizer.convert_tokens_to_ids(TOKENS)
    with torch.device("meta"):
        model = attach_lora(outline(str(base_model), base.config), Lora(), ids)
    state = {
        f"_model.{name}": 0.02 * torch.randn(p.shape)
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    run = {
        "version": 2,
        "model.base_model": base.fingerprint,
        "model.trainable_tokens": ", ".join(TOKENS),
        "data.chat_template": hash_template(tokenizer),
        "trainer.precision": "bf16-mixed",
    }
    folder = RunFolder(root)
    checkpoint = {"state_dict": state, "run": run, "global_step": 100, "callbacks": {}}
    folder.last_checkpoint.parent.mkdir(parents=True)
    AtomicCheckpointIO().save_checkpoint(checkpoint, folder.last_checkpoint)
    options = {
        "model": {"base_model": str(base_model), "lora": {}, "trainable_tokens": TOKENS},
        "data": {"task": {"class_path": "lit_sft.WordProblems", "init_args": {}}},
    }
    folder.config.write_text(yaml.safe_dump(options))


def measure(command: list[str]) -> dict[str, float]:
    """Run a command; return its seconds and its peak of memory, with mapped files and without."""
    started, peaks, done = time.perf_counter(), {"VmHWM": 0.0, "RssAnon": 0.0}, threading.Event()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watcher = threading.Thread(target=watch, args=(process.pid, peaks, done))
    watcher.start()
    _, status, used = os.wait4(process.pid, 0)
    done.set()
    watcher.join()
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return {
        "wall s": time.perf_counter() - started,
        "CPU s": used.ru_utime + used.ru_stime,
        "peak RSS, GiB": peaks["VmHWM"],
        "without mapped files": peaks["RssAnon"],
    }


def watch(pid: int, peaks: dict[str, float], done: threading.Event) -> None:
    """Note the peaks of a process; what its parent had when it was forked is not among them."""
    while not done.wait(0.1):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in peaks:
                    peaks[name] = max(peaks[name], int(value.split()[0]) / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("../shared/llama-3.2-3b"))
    parser.add_argument("--base", type=Path)
    parser.add_argument("--formats", nargs="*", default=FORMATS, choices=FORMATS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lit_sft_export_") as place:
        root, base = Path(place) / "run", options.base
        if base is None:
            base = Path(place) / "base"
            make_base(options.config, base)
        make_run(base, root)
        rows = {"imports alone": [sys.executable, "-c", "import lit_sft.cli.export, peft"]}
        for to in options.formats:
            words = [str(root), "--to", to, "--prompts", "0", "--output", str(root / to)]
            rows[to] = [sys.executable, "-m", "lit_sft", "export", *words]
        for name, command in rows.items():
            figures = measure(command)
            if name == "imports alone":
                print(f"| | {' | '.join(figures)} |\n|{'---|' * (len(figures) + 1)}")
            print(f"| {name} | {' | '.join(f'{x:.1f}' for x in figures.values())} |", flush=True)
            shutil.rmtree(root / name, ignore_errors=True)


if __name__ == "__main__":
    main()
