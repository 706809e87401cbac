"""Real steps of the longest rows, in memory: what a plan is measured by."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch

from lit_sft.callbacks.gradient_checkpointing import GradientCheckpointing
from lit_sft.data.datamodule import SFTDataModule
from lit_sft.evaluation.decode import decode_batch
from lit_sft.evaluation.evaluating import evaluating
from lit_sft.evaluation.generate import generate_greedy
from lit_sft.model.fast.attention import use_attention
from lit_sft.model.figures import GIB, peak_memory_gib
from lit_sft.model.module import SFTModule
from lit_sft.model.pace import does_compiling_pay
from lit_sft.plan.operations import read_clock
from lit_sft.plan.time_plan import Reading
from lit_sft.plan.workload import Answers, find_longest

STEPS = 3
NEW_TOKENS = 16
"""Of the answers that are timed."""
READ_SECONDS, SHORTEST = 2.0, 8
"""For how long prompts are read, which are cut for it, and their tokens at the least."""


class Trial(NamedTuple):
    """What a few steps took."""

    tokens: list[int]
    """Of each step."""
    seconds: list[float]
    """Of each."""
    peak: int
    """The most bytes that were held, from the loading of the weights on."""
    loss_seconds: float
    """Of the loss alone, without gradients, of the last step's rows."""
    readings: list[Reading]
    answer_tokens: list[float]
    """Of the base's answers to some prompts, on average, for each of these."""

    @property
    def token_seconds(self) -> float:
        """Of a step, by its tokens; the first one also makes what the others find."""
        return sum(self.seconds[1:] or self.seconds) / sum(self.tokens[1:] or self.tokens)


def take_trial(
    trainer: pl.Trainer,
    module: SFTModule,
    data: SFTDataModule,
    batches: list[tuple[Answers, int]],
    steps: int,
) -> Trial:
    """Load the weights, and take three optimizer steps of the longest rows.

    Args:
        trainer: Of the run; another one takes the steps, which has no folder and no loggers.
        module: What is trained; it is not to be trained on.
        data: With `train` loaded.
        batches: The answers of each evaluation, and the rows of their first batch.
        steps: Of the run, which decide whether compiled layers pay.
    """
    device = trainer.strategy.root_device
    rows = data.batch_size * data.accumulate_grad_batches
    data.train_on(find_longest(data.prepared["train"].encoded, STEPS * rows))
    if module.speed.compile == "auto" and device.type == "cuda":
        layers = module.base_config.get_text_config().num_hidden_layers
        module.speed = replace(module.speed, compile=does_compiling_pay(layers, steps))
    clock = _Clock(batches)
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    kept = [callback for callback in callbacks if isinstance(callback, GradientCheckpointing)]
    reset_peak(device)
    options: Any = {"precision": trainer.precision}
    pl.Trainer(
        accelerator=device.type,
        devices=1,
        max_steps=STEPS,
        limit_val_batches=0,
        callbacks=[*kept, clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **options,
    ).fit(module, datamodule=data)
    return Trial(
        *(clock.tokens, clock.seconds, clock.peak, clock.loss_seconds),
        *(clock.readings, clock.answer_tokens),
    )


class _Clock(pl.Callback):
    """Times the steps, and what comes between them in a run."""

    def __init__(self, batches: list[tuple[Answers, int]]) -> None:
        self.batches = batches
        self.tokens: list[int] = []
        self.seconds: list[float] = []
        self.readings: list[Reading] = []
        self.answer_tokens: list[float] = []
        self.peak, self.loss_seconds, self._begun_at = 0, 0.0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        self._begun_at = read_clock(pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: SFTModule, outputs: object, batch: Any, batch_idx: int
    ) -> None:
        self.seconds.append(read_clock(pl_module.device) - self._begun_at)
        self.tokens.append(sum(part["num_tokens"] for part in batch))
        self._window = batch
        self._begun_at = read_clock(pl_module.device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        device = pl_module.device
        self.peak = int(peak_memory_gib(device) * GIB)
        begun = read_clock(device)
        with torch.no_grad():
            pl_module.validation_step(self._window, 0)
        self.loss_seconds = read_clock(device) - begun
        pl_module.eval_loss.take("val/loss", [])
        for answers, rows in self.batches:
            affordable = int(READ_SECONDS / self.loss_seconds * self.tokens[-1])
            self.readings.append(time_answers(trainer, pl_module, answers, rows, affordable))
            said = pl_module.generate(answers.sample, answers.max_new_tokens)
            self.answer_tokens.append(sum(len(x.token_ids) + 1 for x in said) / len(said))


def time_answers(
    trainer: pl.Trainer, module: SFTModule, answers: Answers, rows: int, affordable: int
) -> Reading:
    """Time a part of a batch of answers, whose prompts are as long as those and half an answer.

    Args:
        trainer: In `fit`.
        module: Likewise.
        answers: What an evaluation generates.
        rows: Of its first batch.
        affordable: Tokens of the prompts that are read at once.
    """
    model, device = module.model, module.device
    middle = answers.max_new_tokens // 2
    most = max(SHORTEST, affordable // rows)
    lengths = [min(length + middle, most) for length in answers.prompts[:rows]]
    prompts = [[1] * length for length in lengths]
    generate = decode_batch if device.type == "cuda" else None
    use_attention(model, packed=False)
    seconds = []
    with evaluating(model), trainer.precision_plugin.forward_context():
        for tokens in (1, 1, 1 + NEW_TOKENS):  # the first makes what the others find
            begun = read_clock(device)
            whole_batch = rows * (lengths[0] + tokens)
            generate_greedy(model, prompts, [], 0, tokens, whole_batch, generate)
            seconds.append(read_clock(device) - begun)
    _, read, whole = seconds
    share = sum(answers.prompts[:rows]) / sum(lengths)
    return Reading(read * share, max(0.0, whole - read) / NEW_TOKENS, 0)


def reset_peak(device: torch.device) -> None:
    """Let the peak of memory begin anew, where the system has a way."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not on Linux, or not allowed
        return
