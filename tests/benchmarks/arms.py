"""What is compared: the same optimizer steps in TRL and here, each in a process of its own.

An arm trains in segments, and waits before each: the processes of all arms are alive at once and
take turns, so that what the machine does besides hits them alike. The first segment is a single
step without dropout, whose loss and gradient norm must agree between arms.
"""

import os
import tempfile
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pacer import Pacer
from torch import nn

from lit_sft.types import Example

RATE, MAX_GRAD_NORM, ROWS = 1e-4, 1.0, 4
LORA = {"r": 32, "alpha": 64, "dropout": 0.1}


@dataclass(frozen=True)
class Trl:
    """`SFTTrainer` as its users set it up; what is not named here is TRL's default.

    Without a CUDA device TRL's padding-free rows attend under the block mask that transformers
    makes of `position_ids`: FlashAttention, which TRL asks for, is not to be had.
    """

    padding_free: bool = False
    gradient_checkpointing: bool = True


@dataclass(frozen=True)
class Ours:
    """`SFTModule` in a Lightning `Trainer`.

    Args:
        batching: Of a window: `padded` in micro-batches of 4 rows, or `padding_free`.
        max_tokens_per_pass: Of `padding_free`.
        checkpointing: Arguments of `GradientCheckpointing`; None does without.
        quantization: Arguments of `Quantization`.
        model: Further arguments of `SFTModule`.
    """

    batching: str = "padding_free"
    max_tokens_per_pass: int = 4096
    checkpointing: dict[str, Any] | None = None
    quantization: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


Arm = Trl | Ours
ARMS: dict[str, Arm] = {
    "TRL default": Trl(),
    "TRL padding-free": Trl(padding_free=True),
    "TRL padding-free, no checkpointing": Trl(padding_free=True, gradient_checkpointing=False),
    "lit_sft recipe": Ours(batching="padded", checkpointing={"policy": "all"}),
    "lit_sft fast": Ours(model={"optimizer": "adamw"}),
}


class Job(NamedTuple):
    """The steps that every arm takes."""

    base: str
    """A folder with the random base."""
    tokenizer: str
    """A folder with the tokenizer that the rows were encoded with."""
    adapter: str
    """A folder with the adapter to begin with."""
    precision: str
    """By Lightning's name, `bf16-mixed` or `32-true`."""
    windows: list[list[Example]]
    """The rows of every optimizer step, in order."""
    segments: list[int]
    """How many steps are taken from one pause to the next."""
    threads: int


def run_arm(arm: Arm, job: Job, pipe: Connection) -> None:
    """Train, and send the figures of each segment; the other end says when to go on.

    What fails is sent as text.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = os.open(Path(folder) / "log", os.O_CREAT | os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(log, stream)  # the libraries' own lines would get in the way of the table
        torch.set_num_threads(job.threads)
        pacer = Pacer(pipe, job.segments)
        try:
            (_run_trl if isinstance(arm, Trl) else _run_ours)(arm, job, pacer, Path(folder))
        except Exception:
            pipe.send(traceback.format_exc())


def _run_trl(arm: Trl, job: Job, pacer: Pacer, folder: Path) -> None:
    from datasets import Dataset, disable_progress_bars
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from lit_sft.data.tokenizer import load_tokenizer

    class Pace(TrainerCallback):
        figures: dict[str, float]

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            pacer.begin(kwargs["model"])

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step > 1:
                pacer.end_step(None, None)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
            if state.global_step == 1 and "grad_norm" in logs:
                pacer.end_step(logs["loss"], logs["grad_norm"])

    disable_progress_bars()
    is_bf16 = job.precision == "bf16-mixed"
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        job.base,
        dtype=dtype,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
    )
    # Nothing here runs in eval mode before training: bitsandbytes would pack the weights for good.
    model = PeftModel.from_pretrained(model.train(), job.adapter, is_trainable=True)
    options = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=len(job.windows[0]) // ROWS,
        gradient_checkpointing=arm.gradient_checkpointing,
        padding_free=arm.padding_free,
        max_length=None,  # the rows are short already
        max_steps=len(job.windows),
        train_sampling_strategy="sequential",
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        max_grad_norm=MAX_GRAD_NORM,
        bf16=is_bf16,
        use_cpu=True,
        logging_first_step=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = [row._asdict() for window in job.windows for row in window]
    trainer = SFTTrainer(
        model=model,
        args=options,
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(job.tokenizer),
        callbacks=[Pace()],
    )
    trainer.data_collator.pad_token_id %= model.config.vocab_size
    trainer.train()


def _run_ours(arm: Ours, job: Job, pacer: Pacer, folder: Path) -> None:
    import lightning.pytorch as pl

    from lit_sft import GradientCheckpointing, Lora, Quantization, SFTModule
    from lit_sft.callbacks.progress import Progress
    from lit_sft.data.windows import PackedWindows, PaddedWindows, WindowLoader
    from lit_sft.model import module
    from lit_sft.run.metrics_file import MetricsFile

    class Pace(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            optimizer: Any = trainer.optimizers[0]
            optimizer.step = pacer.clock("optimizer", optimizer.step)
            pacer.begin(pl_module)

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
            figures = trainer.callback_metrics
            pacer.end_step(figures["train/loss"].item(), figures["train/grad_norm"].item())

    # The parts of a step are what torch does; the rest is Lightning and the loop.
    module.sum_supervised_loss = pacer.clock("forward", module.sum_supervised_loss)
    torch.Tensor.backward = pacer.clock("backward", torch.Tensor.backward)  # type: ignore[method-assign]
    nn.utils.clip_grad_norm_ = pacer.clock("optimizer", nn.utils.clip_grad_norm_)

    model = SFTModule(
        job.base,
        quantization=Quantization(**arm.quantization),
        lora=Lora(**LORA),
        adapter=job.adapter,
        learning_rate=RATE,
        max_grad_norm=MAX_GRAD_NORM,
        **arm.model,
    )
    rows: Any = [row for window in job.windows for row in window]
    steps: Any = [
        range(start, start + len(job.windows[0]))
        for start in range(0, len(rows), len(job.windows[0]))
    ]
    windows = (
        PaddedWindows(rows, ROWS, pad_token_id=0)
        if arm.batching == "padded"
        else PackedWindows(rows, arm.max_tokens_per_pass)
    )
    callbacks = [Progress(), Pace()]
    if arm.checkpointing is not None:
        callbacks.insert(0, GradientCheckpointing(**arm.checkpointing))
    trainer = pl.Trainer(
        accelerator="cpu",
        precision=job.precision,
        max_steps=len(steps),
        callbacks=callbacks,
        logger=MetricsFile(folder),
        log_every_n_steps=1,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, WindowLoader(windows, batch_size=None, sampler=steps))
