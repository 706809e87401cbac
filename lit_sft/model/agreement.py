"""Whether all ranks see the same run: its config, rows, base, checkpoint and releases."""

import zipfile
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import lightning.pytorch as pl
from torch import distributed

from lit_sft.errors import InputError
from lit_sft.model.distributed import gather_over_ranks
from lit_sft.ranks import name_rank

RELEASES = ("lit-sft", "torch", "transformers", "peft", "bitsandbytes")
"""Packages whose releases decide the numbers of a run."""
MOST_NAMED, MOST_TOLD = 4, 60
"""Differences, and characters of a value, that a message has."""


def require_agreement(facts: Mapping[str, Any]) -> None:
    """Raise `InputError` on all ranks if what they see differs; a single process sees no other.

    Args:
        facts: What this rank sees, as plain values by the names that a user knows.
    """
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    everyone = gather_over_ranks([(name_rank(rank), dict(facts))])
    if problem := find_disagreement(everyone):
        raise InputError(problem)


def find_disagreement(everyone: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return in a line which ranks see what, or an empty string where all see the same.

    Args:
        everyone: Each rank, as a message calls it, and what it sees.
    """
    names = dict.fromkeys(name for _, facts in everyone for name in facts)
    told = []
    for name in names:
        seen: dict[str, list[str]] = defaultdict(list)
        for rank, facts in everyone:
            seen[str(facts.get(name, "not there"))].append(rank)
        if len(seen) > 1:
            parts = [f"{value:.{MOST_TOLD}} on {_join(ranks)}" for value, ranks in seen.items()]
            told.append(f"{name} is {', '.join(parts)}")
    if not told:
        return ""
    rest = f"; and {len(told) - MOST_NAMED} more" if len(told) > MOST_NAMED else ""
    return (
        f"the ranks do not see the same run: {'; '.join(told[:MOST_NAMED])}{rest}. Give all "
        "machines the same config, files and releases"
    )


def describe_start(trainer: pl.Trainer) -> dict[str, Any]:
    """Return what a rank sees before any weights load.

    Args:
        trainer: With its data set up.
    """
    data: Any = getattr(trainer, "datamodule", None)
    about_data = data.describe_run() if hasattr(data, "describe_run") else {}
    return {
        **about_data,
        "trainer.precision": trainer.precision,
        "trainer.max_steps": trainer.max_steps,
        "trainer.max_epochs": trainer.max_epochs,
        **{f"the release of {name}": _find_release(name) for name in RELEASES},
    }


def digest_checkpoint(path: Any) -> str:
    """Return the checksum of a checkpoint, from those of its members; "none" without one.

    Args:
        path: Of the file.
    """
    if not path:
        return "none"
    try:
        with zipfile.ZipFile(path) as archive:
            text = " ".join(f"{x.filename.partition('/')[2]} {x.CRC}" for x in archive.infolist())
    except (OSError, zipfile.BadZipFile):
        return "unreadable"  # whoever loads it says why
    return f"{zlib.crc32(text.encode()):08x}"


def _join(ranks: Sequence[str]) -> str:
    if len(ranks) > MOST_NAMED:
        return f"{len(ranks)} ranks such as {ranks[0]}"
    return ", ".join(ranks)


def _find_release(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
