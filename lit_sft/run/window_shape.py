"""A run that goes on with another number of ranks: which windows stay what they were."""

from collections.abc import Mapping
from typing import NamedTuple

from lit_sft.errors import InputError

SHAPE = ("data.batch_size", "data.accumulate_grad_batches", "trainer.devices")
"""What of a run says how the rows of a window are shared out, and by its product, how many there
are."""


class WindowShape(NamedTuple):
    """How the rows of an optimizer step are shared out."""

    batch_size: int
    accumulate: int
    ranks: int

    @property
    def rows(self) -> int:
        """Of a window, over all ranks."""
        return self.batch_size * self.accumulate * self.ranks

    def __str__(self) -> str:
        return (
            f"{self.rows} rows (batch_size {self.batch_size} x accumulate_grad_batches "
            f"{self.accumulate} x {self.ranks} {'rank' if self.ranks == 1 else 'ranks'})"
        )


def read_shape(run: Mapping[str, object]) -> WindowShape | None:
    """Return the shape of a run's windows, or None where its data module does not say it.

    Args:
        run: As `lit_sft.run.identity.describe_run` gives it.
    """
    numbers = [number for name in SHAPE if isinstance(number := run.get(name), int)]
    return WindowShape(*numbers) if len(numbers) == len(SHAPE) else None


def has_new_shape(saved: Mapping[str, object], now: Mapping[str, object]) -> bool:
    """Return whether a run goes on with another number of ranks, and its window can be compared."""
    was, is_now = read_shape(saved), read_shape(now)
    return was is not None and is_now is not None and was.ranks != is_now.ranks


def without_shape(run: Mapping[str, object]) -> dict[str, object]:
    """Return what a run is, but for how its windows are shared out."""
    return {name: value for name, value in run.items() if name not in SHAPE}


def require_same_window(saved: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Raise `InputError` if the windows of a run have other rows than its checkpoint's had.

    Args:
        saved: Of the checkpoint, with a shape.
        now: Of this run, likewise.
    """
    was, is_now = read_shape(saved), read_shape(now)
    if was is None or is_now is None or was.rows == is_now.rows:
        return
    raise InputError(
        f"the checkpoint's optimizer step has {was}, and here it would have {is_now}: "
        f"{advise(was, is_now)}, or go on all the same with --model.accept_changes "
        f"'[{', '.join(name for name in SHAPE if saved[name] != now[name])}]'"
    )


def advise(was: WindowShape, now: WindowShape) -> str:
    """Return which numbers make windows of as many rows as before, on this number of ranks.

    Args:
        was: Of the checkpoint.
        now: Of this run, whose batch is kept where that is possible.
    """
    if was.rows % now.ranks:
        counts = [str(n) for n in range(1, was.rows + 1) if was.rows % n == 0]
        return (
            f"{was.rows} rows cannot be shared out evenly to {now.ranks} ranks; take "
            f"{', '.join(counts[:-1])} or {counts[-1]} of them"
        )
    rows = was.rows // now.ranks
    batch = max(n for n in range(1, now.batch_size + 1) if rows % n == 0)
    settings = [f"data.accumulate_grad_batches={rows // batch}"]
    if batch != now.batch_size:
        settings.insert(0, f"data.batch_size={batch}")
    return f"set {' and '.join(settings)}"


def tell_new_shape(saved: Mapping[str, object], now: Mapping[str, object], draws: bool) -> str:
    """Return in a line what stays and what does not.

    Args:
        saved: Of the checkpoint, with a shape.
        now: Of this run, likewise.
        draws: Whether a step draws random numbers, such as those of dropout.
    """
    was, is_now = read_shape(saved), read_shape(now)
    if was is None or is_now is None:
        return ""
    drawn = "dropout draws other numbers, as each rank has its own, and " if draws else ""
    return (
        f"trainer.devices was {was.ranks}, is now {is_now.ranks}: the run goes on with the same "
        f"windows of {is_now.rows} rows, optimizer state and position, but not to the byte: "
        f"{drawn}sums over ranks round otherwise"
    )
