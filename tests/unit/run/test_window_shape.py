"""A checkpoint on another number of ranks: the same windows go on, others are told what to set."""

import pytest

from lit_sft.errors import InputError
from lit_sft.run.window_shape import (
    SHAPE,
    has_new_shape,
    require_same_window,
    tell_new_shape,
    without_shape,
)


def shaped(*numbers: int) -> dict[str, object]:
    return {"model.seed": 0} | dict(zip(SHAPE, numbers, strict=True))


@pytest.mark.parametrize("now", [(4, 4, 1), (16, 1, 1), (2, 2, 4), (1, 1, 16), (4, 1, 4)], ids=str)
def test_the_same_window_goes_on_however_it_is_shared_out(now):
    saved = shaped(2, 4, 2)
    assert has_new_shape(saved, shaped(*now))
    require_same_window(saved, shaped(*now))


@pytest.mark.parametrize(
    ("now", "advice"),
    [
        ((2, 4, 1), "set data.accumulate_grad_batches=8"),
        ((2, 4, 8), "set data.accumulate_grad_batches=1"),
        ((4, 4, 8), "set data.batch_size=2 and data.accumulate_grad_batches=1"),
        ((3, 4, 1), "set data.batch_size=2 and data.accumulate_grad_batches=8"),
        ((2, 4, 3), "16 rows cannot be shared out evenly to 3 ranks; take 1, 2, 4, 8 or 16"),
        ((2, 4, 32), "16 rows cannot be shared out evenly to 32 ranks; take 1, 2, 4, 8 or 16"),
    ],
    ids=str,
)
def test_another_window_is_refused_with_the_numbers_to_set(now, advice):
    with pytest.raises(InputError) as error:
        require_same_window(shaped(2, 4, 2), shaped(*now))
    text = str(error.value)
    assert "has 16 rows (batch_size 2 x accumulate_grad_batches 4 x 2 ranks)" in text
    assert advice in text
    assert "\n" not in text
    if advice.startswith("set "):
        batch, accumulate, ranks = now
        for name, value in (x.split("=") for x in advice.removeprefix("set ").split(" and ")):
            batch, accumulate = (
                (int(value), accumulate) if name == "data.batch_size" else (batch, int(value))
            )
        require_same_window(shaped(2, 4, 2), shaped(batch, accumulate, ranks))


def test_the_same_ranks_and_a_data_module_without_batches_are_compared_field_by_field():
    assert not has_new_shape(shaped(2, 4, 2), shaped(4, 2, 2))
    assert not has_new_shape({"trainer.devices": 1}, {"trainer.devices": 2})
    assert without_shape(shaped(2, 4, 2)) == {"model.seed": 0}


def test_what_is_not_equal_is_said_and_no_more():
    told = tell_new_shape(shaped(2, 4, 2), shaped(4, 4, 1), draws=True)
    assert "devices was 2, is now 1" in told
    assert "dropout draws other numbers" in told
    assert "dropout" not in tell_new_shape(shaped(2, 4, 2), shaped(4, 4, 1), draws=False)
