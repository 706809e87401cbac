"""Each architecture is trained on its own loss, and its adapter works in plain PEFT.

`WRITE_README=1 python -m pytest tests/parity/test_architectures.py -k readme` writes the table.
"""

import os
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from architectures import CONFIGS, build
from peft import PeftModel
from tiny_tokenizer import build_tiny_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lit_sft import ChatTask, Lora, SFTDataModule, SFTModule
from lit_sft.model.adapter import attach_lora
from lit_sft.model.base_model import forbid_packing
from lit_sft.model.probe import probe_model
from lit_sft.types import IGNORE_INDEX


class Lines(ChatTask):
    """Rows of unequal length, all longer than the sliding windows."""

    def rows(self, split):
        return [{"q": "why? " * n, "a": "because " * (4 - n) + "!"} for n in (1, 2, 3, 1)]

    def messages(self, row):
        return [
            {"role": "user", "content": row["q"]},
            {"role": "assistant", "content": row["a"]},
        ]


class FirstStep(pl.Callback):
    """Keeps the adapter of the start, and the first loss and gradients."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_start(self, trainer, pl_module):
        pl_module.model.save_pretrained(self.folder)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 0:
            self.gradients = {n: p.grad.clone() for n, p in pl_module.trained_parameters.items()}

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == 1:
            self.loss = trainer.callback_metrics["train/loss"].item()


def load_plain(base, adapter):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=quantization
    )
    forbid_packing(model)  # which takes bf16, and not every width
    return PeftModel.from_pretrained(model, adapter, is_trainable=True).eval()


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The folder of an architecture's base, made when it is asked for."""

    def make(name):
        folder = tmp_path_factory.getbasetemp() / "bases" / name
        if not folder.exists():
            tokenizer = build_tiny_tokenizer()
            build(name, len(tokenizer)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("name", CONFIGS)
def test_trains_on_its_own_loss_and_leaves_an_adapter_for_plain_peft(bases, tmp_path, name):
    base = bases(name)
    module = SFTModule(
        str(base),
        lora=Lora(r=4, alpha=8, dropout=0.0),
        trainable_tokens=["<|eot_id|>"],
        optimizer="adamw",
        learning_rate=1e-2,
        max_grad_norm=0,
        max_new_tokens=8,
    )
    data = SFTDataModule(Lines(), batch_size=2, accumulate_grad_batches=2, val_rows=0)
    first = FirstStep(tmp_path / "start")
    trainer = pl.Trainer(
        max_steps=2,
        accelerator="cpu",
        precision="32-true",
        default_root_dir=tmp_path,
        callbacks=[first],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)

    rows = [data.prepared["train"].encoded[i] for i in range(4)]
    if "dropout" not in name:
        require_own_loss(load_plain(base, tmp_path / "start"), rows, first)
    module.model.save_pretrained(tmp_path / "end")
    plain = load_plain(base, tmp_path / "end")
    prompts = [row.input_ids[:9] for row in rows]
    stops = data.tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"])
    expected = [generate_plainly(plain, prompt, stops) for prompt in prompts]
    assert [answer.token_ids for answer in module.generate(prompts)] == expected


def require_own_loss(model, rows, first):
    """Compare the first step with the model's own loss, row by row."""
    loss, supervised = 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        count = (labels[:, 1:] != IGNORE_INDEX).sum()
        part = model(input_ids=ids, labels=labels, use_cache=False).loss * count
        part.backward()
        loss, supervised = loss + part.item(), supervised + count.item()
    assert first.loss == pytest.approx(loss / supervised, rel=1e-5)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    theirs = {name: p.grad / supervised for name, p in trained.items()}
    size = torch.cat([gradient.flatten() for gradient in theirs.values()]).norm()
    for name, gradient in theirs.items():
        error = (first.gradients[f"_model.{name}"] - gradient).norm()
        assert error <= 1e-4 * gradient.norm() + 1e-6 * size, name


def generate_plainly(model, prompt, stops):
    ids = torch.tensor([prompt])
    with torch.no_grad():
        answer = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=8,
            pad_token_id=0,
            eos_token_id=stops,
        )
    said = answer[0, len(prompt) :].tolist()
    return said[:-1] if said[-1] in stops else said


README = Path(__file__).parents[2] / "README.md"
TABLE = re.compile(r"\| architecture \| rows \|\n\|---\|---\|\n(?:\|.*\n)*")


def test_the_readme_says_how_the_rows_of_each_are_run():
    ways = {}
    for name in CONFIGS:
        base = build(name, vocabulary=97).requires_grad_(False)
        model = attach_lora(base, Lora(r=4, alpha=8))
        ways.setdefault("packed" if probe_model(model, True, True).packs else "padded", []).append(
            name
        )
    lines = [f"| {', '.join(names)} | {way} |\n" for way, names in sorted(ways.items())]
    table = "".join(["| architecture | rows |\n", "|---|---|\n", *lines])
    text = README.read_text(encoding="utf-8")
    if os.environ.get("WRITE_README"):
        README.write_text(TABLE.sub(table, text), encoding="utf-8")
    assert TABLE.search(README.read_text(encoding="utf-8"))[0] == table
