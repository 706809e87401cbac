"""The cards of a run, looked at before any weights load: one that is missing, one that is busy."""

import socket

import torch
from torch import distributed

from lit_sft.errors import InputError, require

OWN_BYTES = 2 * 2**30
"""What CUDA and NCCL take of a card for a process that has loaded nothing yet, at most."""


def require_free(device: torch.device) -> None:
    """Say how much of a card others use; refuse one that takes no process more.

    Args:
        device: Of this rank; nothing is to be said of a CPU.
    """
    if device.type != "cuda":
        return
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the card {device} cannot be used ({reason}); nvidia-smi shows who uses it; choose "
            "others by CUDA_VISIBLE_DEVICES"
        ) from error
    own = torch.cuda.memory_reserved(device)
    card = f"{device} of {socket.gethostname()} ({torch.cuda.get_device_name(device)})"
    if told := describe_use(card, free, total, own):
        print(told, flush=True)


def describe_use(card: str, free: int, total: int, own: int = 0) -> str:
    """Return in a line how much of a card others use, or an empty string.

    Args:
        card: As the line calls it.
        free: Bytes.
        total: Likewise.
        own: Likewise, of this process.
    """
    used = total - free - own
    if used <= OWN_BYTES:
        return ""
    return (
        f"{card}: others use {used / 2**30:.1f} of its {total / 2**30:.1f} GiB; nvidia-smi shows "
        "who, CUDA_VISIBLE_DEVICES chooses other cards"
    )


def require_transport(device_type: str, ranks: int, has_nccl: bool) -> None:
    """Raise `InputError` if several cards have nothing to exchange sums by.

    Args:
        device_type: Of the ranks.
        ranks: Of the run.
        has_nccl: Whether torch was built with it.
    """
    require(
        device_type != "cuda" or ranks == 1 or has_nccl,
        f"{ranks} GPUs exchange gradients by NCCL, which this build of torch "
        f"({torch.__version__}) lacks: install one with it, or train on one "
        "(trainer.devices=1 and trainer.num_nodes=1)",
    )


def has_nccl() -> bool:
    """Return whether torch was built with NCCL."""
    return distributed.is_available() and distributed.is_nccl_available()
