"""How a run that failed ends: in a line for what its user can mend, and said by one rank."""

import errno
import os
import pickle
import re
import sys
import time
import traceback
from pathlib import Path

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import distributed

from lit_sft.errors import (
    InputError,
    InterruptedRun,
    NonFiniteError,
    SaveError,
    UploadError,
    find_origin,
)
from lit_sft.model.peers import PEERS, Failure, is_for_another
from lit_sft.ranks import is_first_rank
from lit_sft.signals import SIGNALS

PATIENCE = 10.0
"""Seconds for which a rank that failed waits for the first one to fail too."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What a system says that has no room for a file: of the disk, a quota, or `ulimit -f`."""
TAKEN = re.compile(r"port: (\d+)\b.*EADDRINUSE", re.DOTALL)
"""What torch says where another process listens already."""
NO_CARD = re.compile(
    r"all CUDA-capable devices are busy or unavailable|invalid device ordinal|"
    r"no CUDA-capable device is detected|No CUDA GPUs are available"
)
"""What CUDA says of cards that are not there, or belong to another process alone."""
NOT_TAKEN = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")
"""Python's own words."""
MOMENT = 1.0
"""Seconds between the end of a rank and what it has told of it, at most."""
GO_ON = "what was saved before is whole; go on with --ckpt_path last"


def explain(error: Exception) -> tuple[int, str] | None:
    """Return the exit status and what to print, or None where only a traceback will do."""
    text = f"error: {error}"
    if isinstance(error, InterruptedRun):
        return error.exit_status, str(error)
    if isinstance(error, InputError):
        return 2, text
    if isinstance(error, MisconfigurationException):
        return 2, " ".join(text.split())
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
    return _explain_meeting(error) if isinstance(error, RuntimeError) else None


def _explain_meeting(error: RuntimeError) -> tuple[int, str] | None:
    """Explain what keeps ranks from meeting, or from going on together."""
    if isinstance(error, distributed.DistNetworkError) and (port := TAKEN.search(str(error))):
        return 2, (
            f"error: port {port[1]} of this machine is taken, at which the ranks are to meet: set "
            "MASTER_PORT to a free one (with torchrun, --master_port), or end what uses it"
        )
    if problem := NO_CARD.search(str(error)):
        return 2, (
            f"error: a card cannot be used: {problem[0]}; nvidia-smi shows which there are and who "
            "uses them, CUDA_VISIBLE_DEVICES and trainer.devices choose others"
        )
    if is_for_another(error):
        return 1, f"error: another rank of the run is gone; {GO_ON}"
    return None


def _is_of_lightning(error: Exception) -> bool:
    """Return whether Lightning's code has raised an error, such as of what a strategy passes on."""
    return find_origin(error).is_relative_to(Path(lightning.__file__).parent)


def conclude(error: Exception, parent: int) -> int:
    """Say what has ended this rank, or leave that to another, and return the exit status.

    Args:
        error: What has ended it.
        parent: The process that has launched this one.

    Raises:
        Exception: The error itself, where a traceback has to tell it.
    """
    PEERS.leave()
    is_first, ends_all = is_first_rank(), isinstance(error, (InterruptedRun, NonFiniteError))
    if is_for_another(error) and (failure := _find_failure()):
        if is_first:
            print(f"error: {failure}", file=sys.stderr)
        else:
            _wait_for_first(parent, PATIENCE)
        return failure.status
    ending = explain(error)
    status, text = ending or (1, f"{type(error).__name__}: {error}")
    if not ends_all and not is_for_another(error):
        PEERS.tell(status, text.removeprefix("error: "))
    if is_first and ending is None:
        raise error
    if ending is None:
        traceback.print_exception(error)
    is_told = not is_first and _wait_for_first(parent, float("inf") if ends_all else PATIENCE)
    if not is_told and ending and (is_first or not ends_all):
        print(text, file=sys.stderr)
    return status


def _find_failure() -> Failure | None:
    """Return what another rank has told of its failure; it may come a moment later than its end."""
    deadline = time.monotonic() + MOMENT
    while (failure := PEERS.find_failure()) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return failure


def _wait_for_first(parent: int, seconds: float) -> bool:
    """Wait in another rank for the first one to end, and return whether it has.

    What ends all ranks is told once. And Lightning kills the first rank, which launched the others,
    a few seconds after one of them has ended: its exit status would be lost. `srun` does so, too.

    Args:
        parent: The process that launched this one.
        seconds: For how long, at most; where something else has launched all, it is `PATIENCE`.
    """
    if not SIGNALS.is_launched:
        seconds = PATIENCE
        has_ended = PEERS.wait_for_first(seconds)
        if has_ended is not None:
            return has_ended
    deadline = time.monotonic() + seconds
    while os.getppid() == parent and time.monotonic() < deadline:
        time.sleep(0.05)
    return os.getppid() != parent
