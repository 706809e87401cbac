"""What each source of a mixture brings to a split."""

from collections.abc import Mapping, Sequence

import numpy as np

from lit_sft.data.encoded_rows import EncodedRows


def group_by_source(sources: Sequence[str], encoded: EncodedRows) -> dict[str, np.ndarray]:
    """Return int64 `[rows]` for each source: the positions of its rows among the kept ones.

    Args:
        sources: Of every row that was given to be encoded, in order.
        encoded: The rows that were kept of them.
    """
    kept = np.delete(np.array(sources), np.asarray(encoded.dropped))
    return {name: np.flatnonzero(kept == name) for name in dict.fromkeys(kept.tolist())}


def format_sources(split: str, encoded: EncodedRows, groups: Mapping[str, np.ndarray]) -> str:
    """Return a plain-text table of each source's share of the rows and of the supervised tokens.

    Args:
        split: Its name.
        encoded: Its rows.
        groups: As `group_by_source` returns them.
    """
    before = np.concatenate([[0], np.cumsum(np.asarray(encoded.supervised), dtype=np.int64)])
    supervised = np.diff(before[np.asarray(encoded.offsets)])
    lines = [f"{split:<24}rows  share  supervised tokens  share"]
    for name, rows in groups.items():
        tokens = int(supervised[rows].sum())
        lines.append(
            f"  {name:<16.16}{len(rows):>10,}{len(rows) / len(encoded):>7.1%}"
            f"{tokens:>19,}{tokens / supervised.sum():>7.1%}"
        )
    return "\n".join(lines)
