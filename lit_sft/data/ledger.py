"""What a split holds, counted and told: rows, lengths, loss, padding, and its sources."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np

from lit_sft.data.encoded_rows import EncodedRows
from lit_sft.data.row_policy import RowPolicy, describe_overlength
from lit_sft.data.splits import NAMED_ROWS


@dataclass(frozen=True)
class Ledger:
    """The figures of one encoded split. Lengths are in tokens, shares between 0 and 1."""

    split: str
    rows: int
    kept: int
    dropped: int
    """Rows that were left out: too long, or with a mark of turns or a bad call in them."""
    truncated: int
    """Rows longer than `max_length` that were cut."""
    duplicates: int
    """Rows that `dedup` removed."""
    mean: float
    p50: int
    p95: int
    p99: int
    max: int
    supervised_share: float
    """Of the real tokens, those that carry loss."""
    padding_share: float
    """Of all positions, those that padding fills when rows are batched in file order."""
    lost_fields: dict[str, int] = field(default_factory=dict)
    """Turns with a field that the chat template does not write, by the role and the field."""
    markers: dict[str, int] = field(default_factory=dict)
    """Rows that hold a mark of turns as plain text, by the mark."""
    bad_calls: dict[str, int] = field(default_factory=dict)
    """Rows with a call that their tools do not allow, by the tool and what is wrong."""

    def as_dict(self) -> dict[str, object]:
        """Return the figures as plain values, for a logger or a model card."""
        return asdict(self)


def make_ledger(split: str, encoded: EncodedRows, batch_size: int, duplicates: int = 0) -> Ledger:
    """Measure an encoded split that has at least one row.

    Args:
        split: Its name.
        encoded: Its rows.
        batch_size: Rows that are padded to one length; 1 where nothing is padded.
        duplicates: Rows that were removed before it was encoded.
    """
    lengths = encoded.lengths()
    ranked = sorted(lengths)
    return Ledger(
        split=split,
        rows=len(encoded) + len(encoded.dropped) + duplicates,
        kept=len(encoded),
        dropped=len(encoded.dropped),
        truncated=len(encoded.truncated),
        duplicates=duplicates,
        mean=sum(lengths) / len(lengths),
        p50=find_quantile(ranked, 0.50),
        p95=find_quantile(ranked, 0.95),
        p99=find_quantile(ranked, 0.99),
        max=ranked[-1],
        supervised_share=encoded.num_supervised() / sum(lengths),
        padding_share=measure_padding(lengths, batch_size),
        lost_fields={name: len(rows) for name, rows in encoded.lost.items()},
        markers={name: len(rows) for name, rows in encoded.marked.items()},
        bad_calls={name: len(rows) for name, rows in encoded.bad_calls.items()},
    )


class Notes(NamedTuple):
    """A line on each of what a user should know of a split, empty where there is nothing."""

    overlength: str
    lost_fields: str
    markers: str
    bad_calls: str


def make_notes(split: str, encoded: EncodedRows, names: Sequence[str], policy: RowPolicy) -> Notes:
    """Say which rows are too long, which fields are lost, and which marks and bad calls there are.

    Args:
        split: Its name.
        encoded: Its rows.
        names: Of all rows that were given to be encoded.
        policy: That they were encoded by.
    """
    overlength = lost_fields = markers = bad_calls = ""
    max_length = policy.max_length
    if too_long := [(names[i], n) for i, n in encoded.find_unfit() if n > max_length]:
        dropped = len(too_long) - len(encoded.truncated)
        overlength = (
            f"{split}: {describe_overlength(too_long, max_length)}; "
            f"{dropped:,} dropped, {len(encoded.truncated):,} truncated"
        )
    if encoded.lost:
        lost_fields = f"{split}: {describe_lost_fields(encoded, names)}"
    if encoded.marked:
        fate = "left out" if policy.on_marker == "drop" else "kept (data.on_marker)"
        markers = f"{split}: {describe_markers(encoded, names)}; {fate}"
    if encoded.bad_calls:
        fate = "left out" if policy.on_bad_call == "drop" else "kept (data.on_bad_call)"
        told = _name_rows(encoded.bad_calls, names)
        bad_calls = f"{split}: calls that the tools of their rows do not allow: {told}; {fate}"
    return Notes(overlength, lost_fields, markers, bad_calls)


def describe_lost_fields(encoded: EncodedRows, names: Sequence[str]) -> str:
    """Say what the chat template does not write, in how many turns, and in which row first.

    Args:
        encoded: Rows that have lost fields.
        names: Of all rows that were given to be encoded.
    """
    counts = [f"{field} of {len(x):,} ({names[x[0]]})" for field, x in encoded.lost.items()]
    return f"left out, as the chat template does not write them: {', '.join(counts)}"


def describe_markers(encoded: EncodedRows, names: Sequence[str]) -> str:
    """Say which marks of turns stand in messages, in how many rows, and in which first.

    Args:
        encoded: Rows some of which hold marks.
        names: Of all rows that were given to be encoded.
    """
    return (
        "messages hold what parts turns in the chat template and is plain text to the tokenizer, "
        f"so that a model reads other turns there: {_name_rows(encoded.marked, names)}"
    )


def _name_rows(positions: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """Return what some rows hold, with how many and which first."""
    return ", ".join(
        f"{what!r} in {len(rows):,} ({', '.join(names[row] for row in rows[:NAMED_ROWS])}"
        f"{', …' * (len(rows) > NAMED_ROWS)})"
        for what, rows in positions.items()
    )


def format_ledgers(ledgers: Sequence[Ledger]) -> str:
    """Return the ledgers as a plain-text table, one line a split."""
    lines = ["split    rows   kept  dropped   mean   p50   p95   max  supervised padding"]
    lines += [
        f"{x.split:<5}{x.rows:>8,}{x.kept:>7,}{x.rows - x.kept:>9,}{x.mean:>7.1f}{x.p50:>6}"
        f"{x.p95:>6}{x.max:>6}{x.supervised_share:>12.1%}{x.padding_share:>8.1%}"
        for x in ledgers
    ]
    return "\n".join(lines)


def measure_padding(lengths: Sequence[int], batch_size: int) -> float:
    """Return the share of padding when rows are batched in order, each batch to its longest row.

    Args:
        lengths: In tokens, of at least one row.
        batch_size: Rows of a batch; the last may have fewer.
    """
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)


def find_quantile(ranked: Sequence[int], share: float) -> int:
    """Return the value below which about `share` of the sorted values lie."""
    return ranked[min(int(share * len(ranked)), len(ranked) - 1)]


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
