"""A run of ours against a loop of plain transformers, PEFT and torch."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    get_cosine_schedule_with_warmup,
)

from lit_sft import ChatTask, Lora, Quantization, SFTDataModule, SFTModule
from lit_sft.data.batching import pad_batch
from lit_sft.data.encoded_rows import EncodedRows
from lit_sft.model.schedule import Schedule
from lit_sft.types import Example, Message

LEARNING_RATE, WARMUP_STEPS, STEPS = 1e-2, 2, 8
LORA = Lora(r=4, alpha=8, dropout=0.0)
ROUNDING = 16 * torch.finfo(torch.float32).eps
"""As a share of a gradient: sums of a few hundred terms, in another order on another CPU."""


class Lines(ChatTask):
    """Rows of very unequal length, so that a mean of means would show."""

    def __init__(self, count: int) -> None:
        self.count = count

    def rows(self, split):
        lengths = [1 + (7 * i) % 40 for i in range(self.count)]
        return [{"q": "what? " * n, "a": f"{n} " * (41 - n)} for n in lengths]

    def messages(self, row) -> list[Message]:
        return [
            {"role": "user", "content": row["q"]},
            {"role": "assistant", "content": row["a"].strip()},
        ]


class StepRecorder(pl.Callback):
    """Keeps what the optimizer is about to see, which the step itself clears."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.gradients.append({k: p.grad.clone() for k, p in pl_module.trained_parameters.items()})

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        self.losses.append(trainer.callback_metrics["train/loss"].item())
        self.rates.append(trainer.callback_metrics["train/learning_rate"].item())


def train(
    base: Path,
    root: Path,
    count: int,
    batch_size: int,
    accumulate: int,
    batching: str = "padding_free",
    **module_args,
):
    recorder = StepRecorder()
    module = SFTModule(
        str(base),
        lora=module_args.pop("lora", LORA),
        optimizer=module_args.pop("optimizer", "adamw"),
        learning_rate=LEARNING_RATE,
        warmup_ratio=WARMUP_STEPS / STEPS,
        **module_args,
    )
    data = SFTDataModule(
        Lines(count),
        batch_size=batch_size,
        accumulate_grad_batches=accumulate,
        batching=batching,
        max_length=600,
        val_rows=0,
    )
    trainer = pl.Trainer(
        max_steps=STEPS,
        default_root_dir=root,
        accelerator="cpu",
        precision="32-true",
        callbacks=[recorder],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return recorder, module, data


def order_of_epochs(rows: EncodedRows, data: SFTDataModule, epochs: int) -> list[list[Example]]:
    """Windows of 16 rows in the order in which the data module hands them out."""
    loader: DataLoader = data.train_dataloader()
    loader.sampler.first_window = 0
    windows = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        windows += [[rows[i] for i in window] for window in loader.sampler]
    return windows


@pytest.mark.parametrize("batching", ["padding_free", "padded"])
@pytest.mark.parametrize("quantization", [Quantization(format="none"), Quantization()])
def test_eight_steps_equal_a_plain_loop(tiny_base, tmp_path, quantization, batching):
    recorder, module, data = train(
        tiny_base,
        tmp_path,
        count=40,
        batch_size=4,
        accumulate=4,
        batching=batching,
        quantization=quantization,
    )
    rows = data.prepared["train"].encoded
    windows = order_of_epochs(rows, data, epochs=3)[:STEPS]
    assert [len(window) for window in windows] == [16, 16, 8, 16, 16, 8, 16, 16]

    model = plain_peft_model(tiny_base, quantization)
    parameters = {k: p for k, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, STEPS)
    for step, window in enumerate(windows):
        batch = pad_batch(window, pad_token_id=0)
        mask = torch.zeros_like(batch["input_ids"])
        for row, example in enumerate(window):
            mask[row, : len(example.input_ids)] = 1
        output = model(batch["input_ids"], attention_mask=mask, labels=batch["labels"])
        output.loss.backward()  # Hugging Face's own mean over all supervised tokens of the batch
        assert recorder.losses[step] == pytest.approx(output.loss.item(), rel=1e-5)
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for name, parameter in parameters.items():
            ours = recorder.gradients[step][f"_model.{name}"]
            assert relative_error(ours, parameter.grad) < 1e-5, (step, name)
        assert recorder.rates[step] == pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    for name, parameter in parameters.items():
        assert relative_error(module.trained_parameters[f"_model.{name}"], parameter) < 1e-4


def plain_peft_model(base: Path, quantization: Quantization):
    """The same base and the same initial adapter, by the libraries alone."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    kwargs = {} if quantization.format == "none" else {"quantization_config": config}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **kwargs)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lora = LoraConfig(
            r=LORA.r,
            lora_alpha=LORA.alpha,
            lora_dropout=0.0,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, lora).train()


def test_how_a_window_is_cut_changes_nothing(tiny_base, tmp_path):
    """40 rows are windows of 16, 16 and 8: the last is short under every cut."""
    runs = [
        train(tiny_base, tmp_path, 40, b, 16 // b, batching, max_grad_norm=0)[0]
        for batching in ("padded", "padding_free")
        for b in (16, 4, 1)
    ]
    for other in runs[1:]:
        assert other.losses[:3] == pytest.approx(runs[0].losses[:3], rel=1e-6)
        for step in range(3):
            for name, gradient in runs[0].gradients[step].items():
                # later steps start from weights that differ in the last bits already
                limit = ROUNDING if step == 0 else 1e-4
                assert relative_error(other.gradients[step][name], gradient) < limit, (step, name)


def test_a_short_last_window_is_exact_from_the_same_weights(tiny_base, tmp_path):
    """9 rows in one window that could hold 16, whole, in three pieces and in nine."""
    runs = [
        train(tiny_base, tmp_path, 9, b, 16 // b, batching, max_grad_norm=0)[0]
        for batching in ("padded", "padding_free")
        for b in (16, 4, 1)
    ]
    for other in runs[1:]:
        for name, gradient in runs[0].gradients[0].items():
            assert relative_error(other.gradients[0][name], gradient) < ROUNDING, name


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (10, 100), (1, 1)])
def test_schedule_equals_that_of_transformers(warmup, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_cosine_schedule_with_warmup(optimizer, warmup, total)
    for step in range(total + 2):
        ours = Schedule(warmup_steps=warmup).factor(step, 0.0, total)
        assert ours == reference.get_last_lr()[0]
        optimizer.step()
        reference.step()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm().clamp_min(1e-12)).item()
