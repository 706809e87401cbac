"""Processes that are the ranks of one group, and do what they are told, each with its arguments."""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed

SECONDS = 60
"""That ranks may take for one order; who waits for another that has failed would wait for ever."""


class Ranks:
    """A group of processes, forked from this one, over gloo.

    Args:
        count: How many.
        folder: Where they find each other.
    """

    def __init__(self, count: int, folder: Path) -> None:
        forking = multiprocessing.get_context("fork")
        self._ends, self._processes = [], []
        for rank in range(count):
            ours, theirs = forking.Pipe()
            place = rank, count, f"file://{folder / 'store'}"
            process = forking.Process(target=_serve, args=(theirs, place), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], each: Sequence[Sequence[Any]]) -> list[Any]:
        """Return what a function of a test's module returns on every rank.

        Args:
            function: It is imported there by its name.
            each: The arguments of each rank.
        """
        for end, arguments in zip(self._ends, each, strict=True):
            end.send((function, arguments))
        answers = []
        for rank, end in enumerate(self._ends):
            assert end.poll(SECONDS), f"rank {rank} does not come back"
            failed, answer = end.recv()
            assert not failed, f"rank {rank}: {answer}"
            answers.append(answer)
        return answers

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
            process.join()


def _serve(end: Connection, place: tuple[int, int, str]) -> None:
    rank, count, store = place
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    while True:
        function, arguments = end.recv()
        try:
            end.send((False, function(*arguments)))
        except BaseException:
            end.send((True, traceback.format_exc()))
