import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_sft.data.batching import pack_batch, pad_batch, share_out
from lit_sft.types import IGNORE_INDEX, Example

ROWS = st.lists(
    st.lists(st.tuples(st.integers(1, 999), st.booleans()), min_size=1, max_size=9),
    min_size=1,
    max_size=5,
)


@given(ROWS)
def test_a_batch_holds_every_row_and_padding_on_the_right(rows):
    examples = [
        Example([token for token, _ in row], [token if on else IGNORE_INDEX for token, on in row])
        for row in rows
    ]
    batch = pad_batch(examples, pad_token_id=0)
    longest = max(map(len, rows))
    assert batch["input_ids"].shape == batch["labels"].shape == (len(rows), longest)
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    for example, ids, labels in zip(
        examples, batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True
    ):
        free = longest - len(example.input_ids)
        assert ids == example.input_ids + [0] * free
        assert labels == example.labels + [IGNORE_INDEX] * free
    assert batch["num_tokens"] == sum(map(len, rows))
    assert batch["num_supervised"] == sum(on for row in rows for _, on in row[1:])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 120))
def test_passes_hold_every_row_once_and_no_more_than_they_may(lengths, limit):
    passes = share_out(lengths, limit)
    assert sorted(row for rows in passes for row in rows) == list(range(len(lengths)))
    for rows in passes:
        assert len(rows) == 1 or sum(lengths[row] for row in rows) <= limit


def test_passes_are_few_and_of_about_equal_size():
    assert share_out([9, 8, 7, 6, 5, 4], 20) == [[0, 3, 4], [1, 2, 5]]
    assert share_out([5, 5], 10) == [[0, 1]]
    assert share_out([50, 1], 10) == [[0], [1]]


def test_rows_end_to_end_have_their_own_positions_and_no_target_across():
    batch = pack_batch([Example([1, 2, 3], [-100, 2, 3]), Example([4, 5], [4, 5])])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["cu_seq_lens"].tolist() == [0, 3, 5]
    assert (batch["num_tokens"], batch["num_supervised"], batch["max_length"]) == (5, 3, 3)
