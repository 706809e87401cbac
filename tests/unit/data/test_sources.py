import pytest

from lit_sft.data.encoded_rows import encode_rows
from lit_sft.data.ledger import format_sources, group_by_source
from lit_sft.data.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def encoded(tiny_tokenizer):
    """Answers of 9, 200, 19 and 29 bytes, the second too long; each with its stop token."""
    tokenizer = load_tokenizer(str(tiny_tokenizer))
    asked = {"role": "user", "content": "q"}
    answers = [{"role": "assistant", "content": "x" * n} for n in (9, 200, 19, 29)]
    rows = [(f"row {i}", [asked, a]) for i, a in enumerate(answers)]
    return encode_rows(tokenizer, rows, 100, "drop")


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
