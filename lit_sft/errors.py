"""What can go wrong with a run, as opposed to with the code."""

import difflib
import signal
from collections.abc import Iterable
from pathlib import Path


class InputError(ValueError):
    """A mistake in a config, a file, a row or a path.

    The message says what was expected, what came, and what to do. The command line prints it
    without a traceback; a library user catches it as a `ValueError`.
    """


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite; the weights are still the last good ones."""


class SaveError(RuntimeError):
    """A checkpoint could not be written; the one before is as it was."""


class UploadError(RuntimeError):
    """The trained adapter is safe on disk, but it did not reach the Hub."""


class InterruptedRun(RuntimeError):  # noqa: N818 (the run did what it was told to)
    """A signal ended the run, between two optimizer steps and after a checkpoint.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        self.exit_status = 128 + number
        super().__init__(
            f"{signal.Signals(number).name} received: the run is saved; go on with --ckpt_path last"
        )


def find_origin(error: BaseException) -> Path:
    """Return the file whose code has raised an error."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return Path(trace.tb_frame.f_code.co_filename if trace else "")


def suggest(wrong: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or an empty string."""
    nearest = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless the condition holds."""
    if not condition:
        raise InputError(message)
