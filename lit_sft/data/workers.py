"""Processes that load, and what becomes of them where one is killed or the run comes to an end."""

import atexit
import multiprocessing
import signal
import weakref
from copy import copy
from ctypes import c_bool
from typing import Any

from lit_sft.signals import OWNED


class _Flag:
    """Stands for an `Event` that is looked at and set, without a lock."""

    def __init__(self) -> None:
        self._is_set = multiprocessing.RawValue(c_bool, False)

    def is_set(self) -> bool:
        """Return whether it is."""
        return self._is_set.value

    def set(self) -> None:
        """Set it, once and for all."""
        self._is_set.value = True


def make_context() -> Any:
    """Return the `multiprocessing_context` of a loader that outlives its workers.

    A worker asks an `Event` for each batch whether it is to end. That has a lock, and one that is
    killed while it asks leaves it locked: the loader waits for it forever, as it looks at the same
    event to say that a worker is gone.
    """
    context: Any = copy(multiprocessing.get_context())
    context.Event = _Flag
    return context


def end_at_exit(batches: Any) -> None:
    """End the workers of an iterator with the process, if it is still there.

    At its exit, a process sends its workers SIGTERM, which they ignore, and waits for them.

    Args:
        batches: As a `DataLoader` makes it. A traceback may keep it alive.
    """
    _reading.add(batches)


_reading: weakref.WeakSet[Any] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    for batches in list(_reading):
        batches._shutdown_workers()


def leave_signals_to_the_trainer(worker_id: int) -> None:
    """Let a loader worker outlive the signal that its whole process group is sent.

    The trainer takes it, and still needs windows to come to an end; a worker goes with the trainer.
    """
    for number in OWNED:
        signal.signal(number, signal.SIG_IGN)
