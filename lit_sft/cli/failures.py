"""How a run that failed ends: in a line for what its user can mend, and said by one rank."""

import errno
import os
import pickle
import re
import time
from pathlib import Path

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_sft.errors import (
    InputError,
    InterruptedRun,
    NonFiniteError,
    SaveError,
    UploadError,
    find_origin,
)

PATIENCE = 10.0
"""Seconds for which a rank that failed waits for the first one to fail too."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What a system says that has no room for a file: of the disk, a quota, or `ulimit -f`."""
NOT_TAKEN = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")
"""Python's own words."""
GO_ON = "what was saved before is whole; go on with --ckpt_path last"


def explain(error: Exception) -> tuple[int, str] | None:
    """Return the exit status and what to print, or None where only a traceback will do."""
    text = f"error: {error}"
    if isinstance(error, InterruptedRun):
        return error.exit_status, str(error)
    if isinstance(error, (InputError, MisconfigurationException)):
        return 2, text
    if (wrong := NOT_TAKEN.search(str(error))) and _is_of_lightning(error):
        return 2, (
            f"error: {wrong[1]} does not take {wrong[2]!r}, which a class of the config passes on "
            "to it; take it from its dict_kwargs"
        )
    if isinstance(error, pickle.UnpicklingError):
        reason = str(error).partition(". ")[0]
        return 2, f"error: a file of weights is damaged, or would run code ({reason})"
    if isinstance(error, torch.OutOfMemoryError):
        return 1, "\n".join([text, *getattr(error, "__notes__", [])])
    if isinstance(error, (NonFiniteError, SaveError, UploadError, FloatingPointError)):
        return 1, text
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return 1, f"{text}; {GO_ON}"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return 1, f"{text}; {GO_ON}, and with data.num_workers=0 if it was killed for its memory"
    if isinstance(error, RuntimeError) and "have a deterministic implementation" in str(error):
        reason = str(error).partition(",")[0]
        return 1, f"error: {reason}; {GO_ON} --trainer.deterministic false"
    if isinstance(error, RuntimeError) and " by peer" in str(error):  # gloo's and NCCL's own words
        return 1, f"error: another rank of the run is gone; {GO_ON}"
    return None


def _is_of_lightning(error: Exception) -> bool:
    """Return whether Lightning's code has raised an error, such as of what a strategy passes on."""
    return find_origin(error).is_relative_to(Path(lightning.__file__).parent)


def has_rank_zero_ended(launcher: int, error: Exception) -> bool:
    """Wait in another rank for the first one to end, and return whether it has.

    What ends all ranks is told once. And Lightning kills the first rank, which launched the others,
    a few seconds after one of them has ended: its exit status would be lost.

    Args:
        launcher: The process that launched this one.
        error: What has ended this rank.
    """
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        return False
    ends_all = isinstance(error, (InterruptedRun, NonFiniteError))
    deadline = time.monotonic() + (float("inf") if ends_all else PATIENCE)
    while os.getppid() == launcher and time.monotonic() < deadline:
        time.sleep(0.05)
    return os.getppid() != launcher
