"""Few rows that are read many times are worth a word."""

import pytest

from lit_sft.data.repetition import tell_repetition


@pytest.mark.parametrize(
    ("rows", "epochs", "is_told"),
    [(40, 88.0, True), (40, 3.0, False), (4000, 88.0, False), (0, 0.0, False)],
)
def test_forty_rows_for_88_epochs_are(rows, epochs, is_told):
    assert ("40 rows of train are read 88 times each" in tell_repetition(rows, epochs)) is is_told
