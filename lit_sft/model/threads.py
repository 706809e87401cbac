"""How many threads compute on a CPU: as many as pay, unless the user has said it."""

import os

import torch

SAID_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WEIGHTS_A_THREAD = 2**17
"""What a thread needs of a square layer to be worth waiting for. At a width of 256, on two
busy cores, one thread trains 1.6 times as fast as two."""


def count_threads(width: int, available: int) -> int:
    """Return how many threads pay.

    It is a function of the model alone, not of the load: another number rounds otherwise, and a run
    that is resumed must not.

    Args:
        width: The model's hidden size.
        available: How many there could be.
    """
    return max(1, min(available, width * width // WEIGHTS_A_THREAD))


def limit_threads(width: int, processes: int) -> None:
    """Let torch use as many threads as pay, in this process and in the ranks that it launches.

    Args:
        width: The model's hidden size.
        processes: Ranks on this machine, which share its cores.
    """
    if any(name in os.environ for name in SAID_BY_USER):
        return
    threads = count_threads(width, torch.get_num_threads() // processes)
    torch.set_num_threads(threads)
    if processes > 1:  # the other ranks inherit it, and Lightning sets no number of its own
        os.environ["OMP_NUM_THREADS"] = str(threads)
