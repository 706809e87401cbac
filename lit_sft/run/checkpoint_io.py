"""Checkpoints that are the old one or the new one, whole, and that cannot run code when loaded."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO

from lit_sft.errors import InputError, SaveError
from lit_sft.files import find_refusal, replace_file
from lit_sft.run.folder import RunFolder


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
            InputError: If the file is missing, damaged, or would run code.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"the checksum of {damaged} does not match")
            checkpoint: dict[str, Any] = torch.load(
                path, map_location=map_location, weights_only=True
            )
        except FileNotFoundError as error:
            raise InputError(f"there is no checkpoint {str(path)!r}") from error
        except Exception as error:  # a damaged archive fails in as many ways as it has bytes
            raise InputError(
                f"the checkpoint {str(path)!r} is damaged, or is none of this trainer's "
                f"({type(error).__name__}: {str(error).splitlines()[0]})"
            ) from error
        return checkpoint

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint that is no longer wanted."""
        Path(path).unlink(missing_ok=True)


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
