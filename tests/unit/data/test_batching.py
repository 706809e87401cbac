import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_sft.data.batching import pad_batch
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
