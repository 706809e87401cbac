"""The benchmark's figures as Markdown."""

import statistics
from collections.abc import Sequence
from typing import Any

MIB = 2**20


def format_case(result: dict[str, Any]) -> str:
    """Return a Markdown table, a row an arm."""
    medians = {name: median(runs, "seconds") for name, runs in result["arms"].items()}
    rivals = [name for name in medians if name.startswith("TRL")]
    header = [
        "arm", "CPU s / step", "supervised tokens / CPU s", "real tokens / CPU s",
        "peak above the model, MiB", "of the matmul rate", "loop",
        *(f"{name} ÷" for name in rivals),
    ]  # fmt: skip
    lines = [header, ["---"] * len(header)]
    for name, runs in result["arms"].items():
        seconds, all_seconds = medians[name], [run["seconds"] for run in runs]
        floor = result["flops_per_step"] / result["matmul_rate"]
        loop = statistics.median(1 - sum(run["parts"].values()) / run["seconds"] for run in runs)
        lines.append(
            [
                name,
                f"{seconds:.3f} ({min(all_seconds):.3f} to {max(all_seconds):.3f})",
                f"{result['supervised_per_step'] / seconds:,.0f}",
                f"{result['tokens_per_step'] / seconds:,.0f}",
                f"{median(runs, 'peak_bytes') / MIB:,.0f}",
                f"{floor / seconds:.2f}",
                f"{loop:.1%}" if runs[0]["parts"] else "",
                *(f"{medians[rival] / seconds:.2f}" for rival in rivals),
            ]
        )
    note = (
        f"A step: {result['tokens_per_step']:,.0f} tokens, {result['supervised_per_step']:,.0f} of "
        f"them supervised, {result['flops_per_step'] / 1e9:,.0f} GFLOP. Matmul rate of its shapes: "
        f"{result['matmul_rate'] / 1e9:,.0f} GFLOP/s; of 2048³: "
        f"{result['square_matmul_rate'] / 1e9:,.0f}."
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{note}"


def format_scaling(results: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table of cost and memory over the rows of a step."""
    lines = ["| rows a step | CPU µs / token | of the first | peak above the model, MiB |"]
    lines.append("|---|---|---|---|")
    costs = []
    for result in results:
        (runs,) = result["arms"].values()
        costs.append(median(runs, "seconds") / result["tokens_per_step"])
        lines.append(
            f"| {result['case']['window_rows']} | {costs[-1] * 1e6:,.1f} | "
            f"{costs[-1] / costs[0]:.2f} | {median(runs, 'peak_bytes') / MIB:,.0f} |"
        )
    return "\n".join(lines)


def median(runs: Sequence[dict[str, float]], figure: str) -> float:
    """Return the median of a figure over the repeats."""
    return statistics.median(run[figure] for run in runs)
