"""A plan in words."""

from lit_sft.model.figures import GIB
from lit_sft.plan.estimate import Plan


def describe_plan(plan: Plan) -> str:
    """Return a plan as lines of text."""
    return "\n".join(["", *_list_memory(plan), "", *_list_left(plan), *_list_time(plan)])


def _list_memory(plan: Plan) -> list[str]:
    memory, base = plan.memory, plan.memory.base
    training = plan.training
    dtype = str(plan.dtype).removeprefix("torch.")
    parts = [
        ("the process, its libraries and the rows", memory.process),
        ("4-bit weights", 0 if memory.cached else base.codes),
        ("scales of these", 0 if memory.cached else base.scales),
        (f"4-bit weights, dequantised to {dtype} (weight_cache)", memory.cached),
        (f"embedding and head in {dtype}", base.embeddings),
        (f"norms and all else in {dtype}", base.others),
        ("pages of their files", memory.pages),
        (f"adapter, {memory.trained // 4:,} numbers in float32", memory.trained),
        ("its gradients", memory.gradients),
        ("its optimizer states" + (", in pages, not counted" if memory.paged else ""),
         memory.states),
        (f"activations of {sum(training.largest):,} tokens, {plan.recomputed} of {plan.layers} "
         "layers recomputed", memory.activations),
        ("what is given back in pieces, and not used again", memory.scattered),
        ("head, at the end of a forward", memory.head),
        *[(f"keys and values of {rows} answers", memory.cache) for rows in plan.batch_rows[:1]],
        ("reading their prompts", memory.answering),
        (f"kernels of passes of {training.sizes:,} sizes", memory.kernels),
    ]  # fmt: skip
    lines = [f"  {name:<66}{format_bytes(size):>10}" for name, size in parts if size]
    place = "the process" if plan.device.type == "cpu" else str(plan.device)
    return [f"memory of {place}", *lines, f"  {'at the peak':<66}{format_bytes(plan.peak):>10}"]


def _list_left(plan: Plan) -> list[str]:
    left = plan.memory.base.left
    if not left:
        return []
    lines = [f"  {name:<66}{format_bytes(size):>10}" for name, size in left.items()]
    return ["matrices that quantisation leaves as they are", *lines, ""]


def _list_time(plan: Plan) -> list[str]:
    training, seconds = plan.training, plan.seconds
    lines = [
        f"{training.steps:,} steps of {training.tokens:,.0f} tokens, {seconds.step:.2f} s each "
        f"({plan.flops / 1e12:.2f} TFLOP, {plan.flops / 1e9 / seconds.step:,.0f} GFLOP/s)",
    ]
    if plan.validations.times:
        lines.append(
            f"{plan.validations.times} validations of {plan.validations.tokens:,} tokens, "
            f"{seconds.validation:.1f} s each"
        )
    for answers, first in zip(plan.answers, plan.first_tokens, strict=True):
        lines.append(
            f"{answers.times} evaluations of {len(answers.prompts)} answers, "
            f"{format_seconds(plan.answer_seconds)}: {first:.0f} tokens each of the base, later "
            f"{answers.references:.0f} as in the rows"
        )
    return ["time", *(f"  {line}" for line in lines),
            f"  in all {format_seconds(plan.job_seconds)}, behind the start"]  # fmt: skip


def format_bytes(size: float) -> str:
    """Return a size in GiB or MiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:,.1f} MiB"


def format_seconds(seconds: float) -> str:
    """Return a time in the units that a person would use."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
