"""Processes that are the ranks of one group, and do what they are told, each with its arguments."""

import multiprocessing
import os
import pickle
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

        The first failure ends the group: ranks that no longer answer in turn would answer later
        orders with what earlier ones asked, or read no order at all, and so would who asks them.

        Args:
            function: It is imported there by its name.
            each: The arguments of each rank.
        """
        assert self._processes, "these ranks have failed before, and were ended"
        answers = []
        try:
            for end, arguments in zip(self._ends, each, strict=True):
                end.send_bytes(pickle.dumps((function, arguments)))
            for rank, end in enumerate(self._ends):
                assert end.poll(SECONDS), f"rank {rank} does not come back"
                # A tensor as bytes: torch's way for pipes asks the process that sent it for a file.
                failed, answer = pickle.loads(end.recv_bytes())
                assert not failed, f"rank {rank}: {answer}"
                answers.append(answer)
        except BaseException:
            self.close()
            raise
        return answers

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes = []


def _serve(end: Connection, place: tuple[int, int, str]) -> None:
    rank, count, store = place
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    while True:
        function, arguments = pickle.loads(end.recv_bytes())
        try:
            answer = False, function(*arguments)
        except BaseException:
            answer = True, traceback.format_exc()
        end.send_bytes(pickle.dumps(answer))
