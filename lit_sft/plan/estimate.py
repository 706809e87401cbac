"""What a run will take, worked out from shapes, the lengths of rows, and timed operations."""

from dataclasses import dataclass
from typing import NamedTuple

import lightning.pytorch as pl
import torch

from lit_sft.data.datamodule import SFTDataModule
from lit_sft.model.fast.cross_entropy import ROWS_AT_ONCE
from lit_sft.model.fast.memory import (
    find_layers,
    recompute_layers,
)
from lit_sft.model.module import SFTModule
from lit_sft.model.pace import choose_tokens
from lit_sft.plan.kernel_memory import Kernels, measure_kernels
from lit_sft.plan.memory_plan import (
    MemoryPlan,
    measure_process,
    repeat_history,
)
from lit_sft.plan.operations import Operation, time_operations
from lit_sft.plan.outlined_job import (
    Job,
    count_kept,
    count_recomputed,
    count_rows,
    find_evaluations,
    find_token_rows,
    outline_job,
)
from lit_sft.plan.stored_bytes import (
    count_cache_bytes,
    count_head_bytes,
    count_state_bytes,
    count_trained,
    read_stored_size,
)
from lit_sft.plan.time_plan import (
    Pass,
    Reading,
    make_head,
    note_pass,
    time_dequantising,
    time_head,
    time_reading,
    time_update,
)
from lit_sft.plan.trial import Trial, take_trial
from lit_sft.plan.workload import (
    Answers,
    Training,
    Validations,
    count_places,
    plan_answers,
    plan_training,
    plan_validations,
)


class Seconds(NamedTuple):
    """Of the parts of a run, on this device."""

    step: float
    validation: float
    readings: list[Reading]
    """Of the first batch of answers of each `GenerationEval`."""


@dataclass(frozen=True)
class Plan:
    """What a run will take."""

    device: torch.device
    dtype: torch.dtype
    training: Training
    validations: Validations
    answers: list[Answers]
    batch_rows: list[int]
    """Of the first batch of each of `answers`."""
    memory: MemoryPlan
    layers: int
    recomputed: int
    """Layers that compute their forward again."""
    token_rows: int
    """Rows of the embedding that may be trained."""
    flops: float
    """Of an optimizer step, in its matrix products and its attention."""
    seconds: Seconds
    trial: Trial | None
    """What was measured."""

    @property
    def peak(self) -> int:
        """The most bytes at once; what was measured goes on growing by kernels and answers."""
        memory = self.memory
        if self.trial is None:
            return memory.peak
        return self.trial.peak + memory.kernels + memory.beside_step

    @property
    def first_tokens(self) -> list[float]:
        """Of the base's own answers, on average: as measured, or up to their limit."""
        limits: list[float] = [answers.max_new_tokens for answers in self.answers]
        return self.trial.answer_tokens if self.trial else limits

    @property
    def answer_seconds(self) -> float:
        """Of all evaluations; later answers are taken to be as long as those of the rows."""
        total = 0.0
        for answers, rows, reading, first in zip(
            self.answers, self.batch_rows, self.seconds.readings, self.first_tokens, strict=True
        ):
            tokens = first + (answers.times - 1) * answers.references
            batch = answers.times * reading.seconds + tokens * reading.token_seconds
            total += batch * len(answers.prompts) / rows
        return total

    @property
    def job_seconds(self) -> float:
        """Of all steps and evaluations; the start of the command is not in it."""
        losses = self.validations.times * self.seconds.validation
        return self.training.steps * self.seconds.step + losses + self.answer_seconds


def make_plan(
    trainer: pl.Trainer, module: SFTModule, data: SFTDataModule, measured: bool = False
) -> Plan:
    """Work out what a run will take.

    Args:
        trainer: As it would fit, with what it would fit attached.
        module: Likewise.
        data: With its splits loaded.
        measured: Whether weights are loaded, for three real steps; otherwise none are read.

    Raises:
        InputError: As the run would.
    """
    import peft  # noqa: F401 (a part of the process that is measured)

    process = measure_process(trainer.strategy.root_device)
    tokens = find_token_rows(module, data)
    job = outline_job(trainer, module, data, tokens)
    per_token = count_kept(job)
    layers = len(find_layers(job.weightless.model))
    if job.device.type == "cuda" and data.leaves_passes_open:
        data.widen_passes(choose_tokens(data, per_token, layers, job.free))
    recomputed = count_recomputed(job, layers, per_token)
    if recomputed:
        recompute_layers(job.weightless.model, recomputed)
    training = plan_training(data, trainer)
    evaluations = find_evaluations(trainer)
    answers = [plan_answers(x, data, module.max_new_tokens, training) for x in evaluations]
    rows = [count_rows(job, *pair) for pair in zip(evaluations, answers, strict=True)]
    validations = plan_validations(data, trainer, training)
    passes = [note_pass(job.weightless, x, job.packed, job.autocast()) for x in training.typical]
    batches = list(zip(answers, rows, strict=True))
    # First of all that computes: what others leave behind would hide how the process grows.
    largest = note_pass(job.weightless, training.largest, job.packed, job.autocast())
    repeated = [x.whole.history for x in (largest, *passes)] * 2
    kernels = _measure_kernels(job, training, passes[0])
    held = repeat_history(repeated, job.device)
    trial = take_trial(trainer, module, data, batches, training.steps) if measured else None
    if trial:
        seconds = _read_trial(trial, training, validations)
    else:
        seconds = _time_parts(job, training, validations, passes, batches)
        new = min(len(training.typical), training.sizes / training.steps)
        seconds = Seconds(seconds.step + new * kernels.seconds, *seconds[1:])
    memory = _add_up(
        job, process, training, batches, largest, held, kernels.bytes, seconds.readings
    )
    return Plan(
        *(job.device, job.dtype, training, validations, answers, rows, memory),
        *(layers, recomputed, tokens, _count_flops(job, training, passes), seconds, trial),
    )


def _time_parts(
    job: Job,
    training: Training,
    validations: Validations,
    passes: list[Pass],
    batches: list[tuple[Answers, int]],
) -> Seconds:
    known: dict[Operation, float] = {}
    device, config = job.device, job.config
    tokens = sum(map(sum, training.typical))
    whole, forward = (
        sum(time_operations(counts, device, known) for counts in part) / tokens
        for part in ([x.whole.counts for x in passes], [x.forward.counts for x in passes])
    )
    head = time_head(training.supervised, config.hidden_size, config.vocab_size, job.dtype, device)
    head /= max(1.0, training.supervised)
    again = 0.0
    if job.base.quantized and not job.cached:
        again = time_dequantising(job.base.quantized, job.dtype, device) * len(passes)
    share = 2 + _share_recomputed(job)
    update = time_update(job.module.optimizer_name, count_trained(job.weightless.model), device)
    return Seconds(
        whole * training.tokens + head * training.supervised + again * share + update,
        forward * validations.tokens + head * validations.supervised,
        [
            time_reading(
                *(job.weightless, answers.prompts[:rows], answers.max_new_tokens),
                *(job.autocast, known),
            )
            for answers, rows in batches
        ],
    )


def _measure_kernels(job: Job, training: Training, one: Pass) -> Kernels:
    rows, width = min(job.config.vocab_size, ROWS_AT_ONCE), job.config.hidden_size
    head = make_head(rows, width, job.dtype, job.device)
    states = int(sum(training.typical[0]) * training.supervised / training.tokens)
    return measure_kernels(
        one.whole.counts,
        count_places(training.typical[0], job.data),
        training.sizes,
        lambda less: head(max(1, states - less)),
        job.device,
    )


def _read_trial(trial: Trial, training: Training, validations: Validations) -> Seconds:
    of_loss = trial.loss_seconds / trial.tokens[-1]
    return Seconds(
        trial.token_seconds * training.tokens, of_loss * validations.tokens, trial.readings
    )


def _share_recomputed(job: Job) -> float:
    layers = find_layers(job.weightless.model)
    return sum(layer.gradient_checkpointing for layer in layers) / max(1, len(layers))


def _count_flops(job: Job, training: Training, passes: list[Pass]) -> float:
    tokens = sum(map(sum, training.typical))
    of_layers = sum(x.whole.flops for x in passes) / tokens * training.tokens
    weights: int = job.config.hidden_size * job.config.vocab_size
    return of_layers + 4 * training.supervised * weights


def _count_pages(job: Job) -> int:
    """Return what stays of the files of the weights, but for tensors that are used as they are."""
    if job.device.type != "cpu" or getattr(job.trainer.strategy, "shards", False):
        return 0  # a rank that shares a base closes them behind each tensor
    return max(0, (read_stored_size(job.module.base_model) or 0) - job.base.embeddings)


def _add_up(
    job: Job,
    process: int,
    training: Training,
    batches: list[tuple[Answers, int]],
    largest: Pass,
    held: int,
    kernels: int,
    readings: list[Reading],
) -> MemoryPlan:
    config, trained = job.config, count_trained(job.weightless.model)
    name = job.module.optimizer_name
    caches = [
        count_cache_bytes(config, count, x.prompts[0] + x.max_new_tokens, job.dtype)
        for x, count in batches
    ]
    states = int(sum(training.largest) * training.supervised / training.tokens)
    return MemoryPlan(
        process=process,
        base=job.base,
        cached=job.cached,
        trained=4 * trained,
        gradients=4 * trained,
        states=count_state_bytes(name, trained),
        paged=name.startswith("paged") and job.device.type == "cuda",
        activations=largest.whole.peak_bytes,
        pages=_count_pages(job),
        kept=largest.forward.live_bytes,
        scattered=max(0, held - largest.whole.peak_bytes),
        head=count_head_bytes(states, config.hidden_size, config.vocab_size, job.dtype, job.device),
        cache=max(caches, default=0),
        answering=max((x.bytes for x in readings), default=0),
        kernels=kernels,
        adds_up=job.device.type == "cpu",
    )
