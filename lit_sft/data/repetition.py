"""Few rows that are read many times."""

MANY_EPOCHS, FEW_ROWS = 10, 1_000
"""Fewer rows than this that are read more often than that are learnt by heart."""


def tell_repetition(rows: int, epochs: float) -> str:
    """Return a sentence where few rows are read over and over, else nothing.

    Args:
        rows: Of train, those that are kept.
        epochs: How often each is read, in the whole run.
    """
    if not (0 < rows < FEW_ROWS and epochs > MANY_EPOCHS):
        return ""
    return (
        f"{rows:,} rows of train are read {epochs:,.0f} times each, and learnt by heart: take more "
        "rows, or fewer steps"
    )
