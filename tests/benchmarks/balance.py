"""How many more tokens than the mean has the rank of a window that has most, and all wait for?

    PYTHONPATH=.:tests/benchmarks python tests/benchmarks/balance.py

reads the rows of GSM8K, and shares their windows out by the lengths of rows, and without them.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from preparation import prepare_here
from speed import ROOT, require_data

from lit_sft.data.windows import WindowSampler


def measure(lengths: Sequence[int], rows: int, ranks: int, known: bool) -> float:
    """Return the most tokens of a rank over the mean, on average over the whole windows.

    Args:
        lengths: Tokens of each row.
        rows: Of a window, for each rank.
        ranks: How many.
        known: Whether windows are shared out by them.
    """
    more = {"world_size": ranks, "lengths": lengths if known else None}
    shares = [
        WindowSampler(len(lengths), rows * ranks, 0, rank=rank, **more) for rank in range(ranks)
    ]
    windows = [
        [sum(lengths[row] for row in own) for own in window] for window in zip(*shares, strict=True)
    ]
    return statistics.mean(max(window) / statistics.mean(window) for window in windows[:-1])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared")
    data = parser.parse_args().data
    require_data(data)
    _, labels = prepare_here(data)
    lengths = [len(row) for row in labels]
    print("| rows a rank | ranks | as they come | by their lengths |\n|---|---|---|---|")
    for rows in (16, 4, 2):
        for ranks in (2, 4, 8):
            cells = (f"{measure(lengths, rows, ranks, known):.3f}" for known in (False, True))
            print(f"| {rows} | {ranks} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
