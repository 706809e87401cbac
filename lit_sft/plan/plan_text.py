"""A plan in words."""

from collections.abc import Iterable

import torch

from lit_sft.model.figures import GIB
from lit_sft.model.stored_base import StoredBase
from lit_sft.plan.estimate import Plan

NAME = 62
"""Characters of what stands before a size."""


def describe_base(base: StoredBase, dtype: torch.dtype) -> str:
    """Return what a base takes as it is stored, as lines of text.

    Args:
        base: Its sizes.
        dtype: Of all that is not quantised.
    """
    name = _name(dtype)
    parts = [
        (f"{base.quantized:,} weights in four bits", base.codes),
        ("their scales", base.scales),
        (f"embedding and head, {name}", base.embeddings),
        (f"norms and all else, {name}", base.others),
    ]
    lines = ["", "the base as it is stored", *_list_sizes(parts)]
    if base.left:
        lines += [f"of this, matrices that quantisation leaves in {name}"]
        lines += _list_sizes(base.left.items())
    return "\n".join(lines)


def describe_plan(plan: Plan) -> str:
    """Return the memory and the time of a run, as lines of text."""
    return "\n".join(["", *_list_memory(plan), "", *_list_time(plan)])


def _list_memory(plan: Plan) -> list[str]:
    memory, training = plan.memory, plan.training
    packed = memory.base.codes + memory.base.scales
    cached = f"4-bit weights, dequantised to {_name(plan.dtype)} for good (weight_cache)"
    recomputed = f", {plan.recomputed} of {plan.layers} layers recomputed"
    parts = [
        ("the process, its libraries and the rows", memory.process),
        (cached, memory.cached) if memory.cached else ("4-bit weights and scales", packed),
        ("the rest of the base", memory.base.embeddings + memory.base.others),
        ("pages of the files of weights", memory.pages),
        (f"adapter, {memory.trained // 4:,} numbers", memory.trained),
        ("its gradients", memory.gradients),
        (
            "its optimizer states" + (", paged, and not counted" if memory.paged else ""),
            memory.states,
        ),
        (f"activations of {sum(training.largest):,} tokens{recomputed}", memory.activations),
        ("memory that is given back in pieces", memory.scattered),
        ("the head's part of a loss, behind the activations", memory.head),
        *((f"keys and values of {rows} answers", memory.cache) for rows in plan.batch_rows[:1]),
        ("reading their prompts", memory.answering),
        (f"kernels of passes of {training.sizes:,} sizes", memory.kernels),
        ("at the peak" + (", from three real steps" if plan.trial else ""), plan.peak),
    ]
    place = "this process" if plan.device.type == "cpu" else str(plan.device)
    return [f"memory of {place}", *_list_sizes(parts)]


def _list_time(plan: Plan) -> list[str]:
    training, seconds = plan.training, plan.seconds
    rate = plan.flops / 1e9 / seconds.step
    lines = [
        f"{training.steps:,} steps of {training.tokens:,.0f} tokens, {seconds.step:.3g} s each "
        f"({plan.flops / 1e12:.3g} TFLOP, {rate:,.0f} GFLOP/s)"
    ]
    if plan.validations.times:
        lines.append(
            f"{plan.validations.times:,} validations of {plan.validations.tokens:,} tokens, "
            f"{seconds.validation:.3g} s each"
        )
    for answers, first in zip(plan.answers, plan.first_tokens, strict=True):
        lines.append(
            f"{answers.times:,} evaluations of {len(answers.prompts):,} answers, "
            f"{format_seconds(plan.answer_seconds)}: {first:.0f} tokens each of the base, "
            f"later {answers.references:.0f} as in the rows"
        )
    how = "measured in three steps" if plan.trial else "estimated by its operations"
    lines.append(f"in all {format_seconds(plan.job_seconds)} behind the start")
    return [f"time, {how}, if nothing else computes", *(f"  {line}" for line in lines)]


def _list_sizes(parts: Iterable[tuple[str, int]]) -> list[str]:
    return [f"  {name:<{NAME}}{format_bytes(size):>10}" for name, size in parts if size]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def format_bytes(size: float) -> str:
    """Return a size in GiB or MiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:,.1f} MiB"


def format_seconds(seconds: float) -> str:
    """Return a time in the unit that a person would use."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
