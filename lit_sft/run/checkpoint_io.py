"""Checkpoints that are the old one or the new one, whole, and that cannot run code when loaded."""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO

from lit_sft.errors import InputError, SaveError, require
from lit_sft.files import find_refusal, replace_file
from lit_sft.run.folder import RunFolder

OURS = ("pytorch-lightning_version", "global_step", "state_dict", "run")
"""What a checkpoint has always held, and another's has not."""


class AtomicCheckpointIO(CheckpointIO):
    """Save through a temporary file beside the target; verify every checksum before loading.

    A checkpoint of torch is a zip archive, which holds a CRC-32 of each of its members; torch
    itself does not look at them.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, object],
        path: str | os.PathLike[str],
        storage_options: object = None,
    ) -> None:
        """Write a checkpoint; a full disk or a kill leaves the previous one as it was.

        Raises:
            SaveError: If the disk is full or read-only.
        """
        try:
            with replace_file(Path(path)) as staged, staged.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            refusal = find_refusal(error)
            if refusal is None:
                raise
            raise SaveError(
                f"the checkpoint {str(path)!r} could not be written ({refusal}); what was "
                "there before is still whole"
            ) from error

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = "cpu",
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Return a checkpoint that is whole and holds nothing but tensors and plain values.

        Raises:
            InputError: If the file is missing, damaged, none of this trainer's, or would run code.
        """
        with _told_by_name(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"the checksum of {damaged} does not match")
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        return _require_ours(checkpoint, path)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint that is no longer wanted."""
        Path(path).unlink(missing_ok=True)


def skim_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a checkpoint whose tensors stay on the disk until they are read.

    Raises:
        InputError: As for `load_checkpoint`, but that checksums are not looked at.
    """
    with _told_by_name(path):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return _require_ours(checkpoint, path)


@contextmanager
def _told_by_name(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise `InputError` for whatever keeps a file from being loaded."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {str(path)!r}") from error
    except Exception as error:  # a damaged archive fails in as many ways as it has bytes
        raise InputError(
            f"the checkpoint {str(path)!r} is damaged, or is none of this trainer's "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from error


def _require_ours(content: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    held = content if isinstance(content, dict) else {}
    missing = [name for name in OURS if name not in held]
    require(
        not missing,
        f"the checkpoint {str(path)!r} is none of this trainer's: it is a {type(content).__name__} "
        f"without {', '.join(missing)}; name one that lit-sft fit has saved",
    )
    return held


def last_checkpoint(root: str | Path, may_fall_back: bool = False) -> str | None:
    """Return the checkpoint to go on from, for `trainer.fit(ckpt_path=...)`.

    None where a run has saved nothing yet: it then starts anew.

    Args:
        root: The run's folder.
        may_fall_back: Whether the checkpoint before will do where the last is damaged.

    Raises:
        InputError: If the last is damaged, and the one before may not be used or is damaged, too.
    """
    folder = RunFolder(root)
    return choose_checkpoint(folder, may_fall_back) if folder.last_checkpoint.exists() else None


def choose_checkpoint(folder: RunFolder, may_fall_back: bool) -> str:
    """Return the checkpoint of a run to resume from.

    Args:
        folder: Of the run.
        may_fall_back: Whether the checkpoint before will do where the last is damaged.

    Raises:
        InputError: If there is none, or the last is damaged and no older one may be used.
    """
    candidates = (folder.last_checkpoint, folder.previous_checkpoint)
    io = AtomicCheckpointIO()
    for path in candidates:
        if not path.is_file():
            continue
        try:
            io.load_checkpoint(path)
        except InputError as error:
            if not may_fall_back:
                raise InputError(
                    f"{error}. An older checkpoint is used with --resume_policy fallback"
                ) from error
            print(f"{error}; looking for an older one")
            continue
        return str(path)
    raise InputError(f"ckpt_path: there is no checkpoint {str(candidates[0])!r} that can be loaded")
