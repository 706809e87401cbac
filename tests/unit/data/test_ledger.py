import numpy as np
import pytest

from lit_sft.data.encoded_rows import EncodedRows, encode_rows
from lit_sft.data.ledger import format_ledgers, format_sources, group_by_source, make_ledger
from lit_sft.data.row_policy import RowPolicy
from lit_sft.data.tokenizer import load_tokenizer


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


@pytest.fixture(scope="module")
def encoded(tiny_tokenizer):
    """Answers of 9, 200, 19 and 29 bytes, the second too long; each with its stop token."""
    tokenizer = load_tokenizer(str(tiny_tokenizer))
    asked = {"role": "user", "content": "q"}
    answers = [{"role": "assistant", "content": "x" * n} for n in (9, 200, 19, 29)]
    rows = [(f"row {i}", [asked, a]) for i, a in enumerate(answers)]
    return encode_rows(tokenizer, rows, RowPolicy(100))


def test_rows_that_were_dropped_are_of_no_source(encoded):
    groups = group_by_source(["a", "b", "b", "a"], encoded)
    assert {name: rows.tolist() for name, rows in groups.items()} == {"a": [0, 2], "b": [1]}
    assert list(group_by_source(["a", "b", "c", "a"], encoded)) == ["a", "c"]


def test_the_table_has_rows_and_supervised_tokens_of_each(encoded):
    table = format_sources("train", encoded, group_by_source(["a", "b", "b", "a"], encoded))
    assert [line.split() for line in table.splitlines()] == [
        ["train", "rows", "share", "supervised", "tokens", "share"],
        ["a", "2", "66.7%", "40", "66.7%"],
        ["b", "1", "33.3%", "20", "33.3%"],
    ]
