import numpy as np
import pytest

from lit_sft.data.encoded_rows import EncodedRows
from lit_sft.data.ledger import format_ledgers, make_ledger


def rows_of_lengths(lengths: list[int], supervised: int, dropped: int = 0) -> EncodedRows:
    mask = np.zeros(sum(lengths), dtype=bool)
    mask[:supervised] = True
    return EncodedRows(
        input_ids=np.zeros(sum(lengths), dtype=np.int32),
        supervised=mask,
        offsets=np.cumsum([0, *lengths]),
        dropped=np.arange(dropped),
        truncated=np.arange(0),
        whole_lengths=np.full([dropped], 99),
    )


def test_figures_of_a_split_counted_by_hand():
    ledger = make_ledger("train", rows_of_lengths([2, 4, 6, 8, 10], supervised=15, dropped=3), 2)
    assert (ledger.rows, ledger.kept, ledger.dropped) == (8, 5, 3)
    assert (ledger.mean, ledger.p50, ledger.p95, ledger.max) == (6.0, 6, 10, 10)
    assert ledger.supervised_share == 0.5
    # Batches of 2, 2 and 1 rows: 2 * 4 + 2 * 8 + 1 * 10 positions for 30 tokens.
    assert ledger.padding_share == pytest.approx(4 / 34)
    assert ledger.as_dict()["split"] == "train"


def test_one_row_has_every_quantile():
    ledger = make_ledger("val", rows_of_lengths([7], supervised=7), 4)
    assert {ledger.p50, ledger.p95, ledger.p99, ledger.max} == {7}
    assert ledger.padding_share == 0


def test_the_table_has_one_aligned_line_a_split():
    lines = format_ledgers(
        [
            make_ledger("train", rows_of_lengths([100] * 1200, supervised=60_000), 4),
            make_ledger("val", rows_of_lengths([50], supervised=10), 4),
        ]
    ).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert " ".join(lines[1].split()) == "train 1,200 1,200 0 100.0 100 100 100 50.0% 0.0%"
