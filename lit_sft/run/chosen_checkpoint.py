"""Which checkpoint of a run is meant by `best`, `last` or a file, and whether it is its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lit_sft.errors import InputError, require
from lit_sft.model.saved_adapter import CONFIG
from lit_sft.run.best_checkpoint import choose_best, find_best
from lit_sft.run.checkpoint_io import AtomicCheckpointIO, choose_checkpoint, skim_checkpoint
from lit_sft.run.folder import RunFolder
from lit_sft.run.lock import is_held

OF_MACHINES = ("model.quantization.weight_cache", "trainer.strategy")
"""Settings that a run may come to anew wherever it goes on, and that its answers do not show."""


class ChosenCheckpoint(NamedTuple):
    """A checkpoint of a run."""

    path: Path
    content: dict[str, Any]
    steps_taken: int
    """Of the run by now."""
    best_by: str | None
    """The figure that it is the best by; None for any other."""
    is_training: bool
    """Whether the run still goes on."""

    def describe(self) -> str:
        """Return it in words, such as `x.ckpt, after 10 steps, the best by val/exact_match`."""
        text = f"{self.path}, after {self.content['global_step']:,} steps"
        text += f", the best by {self.best_by}" if self.best_by else ""
        return text + (": the run is still training" if self.is_training else "")


def find_checkpoint(folder: RunFolder, wanted: str | None, may_fall_back: bool) -> str | None:
    """Return the file that a run goes on from, or that is measured; None for none.

    Args:
        folder: Of the run.
        wanted: `last`, `best`, a file, or `auto`: the last where the run has saved one.
        may_fall_back: As for `choose_checkpoint`.

    Raises:
        InputError: If there is none, or it is no checkpoint.
    """
    if wanted == "auto" and not folder.last_checkpoint.exists():
        return None  # it was interrupted before there was anything to save
    if wanted in ("last", "auto"):
        return choose_checkpoint(folder, may_fall_back)
    if wanted == "best":
        return choose_best(folder)
    if wanted is not None:
        require(Path(wanted).is_file(), f"ckpt_path: there is no checkpoint {wanted!r}")
        skim_checkpoint(wanted)
    return wanted


def read_checkpoint(folder: RunFolder, wanted: str | None) -> ChosenCheckpoint:
    """Return the checkpoint that is asked for, and what it is the best by, if it is.

    Args:
        folder: Of the run.
        wanted: `best`, `last` or a file; None takes the best where a metric was monitored, else
            the last.

    Raises:
        InputError: If there is none, or the file is of another run.
    """
    newest_path = _find_newest(folder)
    is_path = wanted not in (None, "best", "last")
    path = Path(str(wanted)) if is_path else newest_path
    if path is None:
        raise InputError(_tell_nothing(folder))
    require(path.is_file(), f"--checkpoint: there is no file {wanted!r}")
    require(
        wanted != "last" or path == folder.last_checkpoint,
        f"--checkpoint last: {str(folder.root)!r} has no {folder.last_checkpoint.name}; it has "
        f"{path.name}",
    )
    io = AtomicCheckpointIO()
    newest = io.load_checkpoint(newest_path or path)
    best = find_best(folder, newest.get("callbacks", {}), newest["global_step"])
    require(
        best is not None or wanted != "best",
        f"--checkpoint best: {str(folder.root)!r} kept none; lightning.pytorch.callbacks."
        "ModelCheckpoint with a monitor keeps one. Use --checkpoint last",
    )
    if best and wanted in (None, "best"):
        path = best.path
    content = newest if path == newest_path else io.load_checkpoint(path)
    if is_path:
        _require_own(folder, path, content, newest)
    is_best = best is not None and path.resolve() == best.path.resolve()
    best_by = best.monitor if best and is_best else None
    return ChosenCheckpoint(path, content, newest["global_step"], best_by, is_held(folder.root))


def _find_newest(folder: RunFolder) -> Path | None:
    """Return the last checkpoint; of a run that was killed before it had one, what there is."""
    if folder.last_checkpoint.is_file():
        return folder.last_checkpoint
    kept = folder.last_checkpoint.parent.glob("*.ckpt")
    return max(kept, key=lambda path: path.stat().st_mtime, default=None)


def _require_own(
    folder: RunFolder, path: Path, content: Mapping[str, Any], newest: Mapping[str, Any]
) -> None:
    """Raise `InputError` for another run's checkpoint, of which this run's figures are not true.

    What lies in the folder is its own; what lies elsewhere has to be of the same run by all that it
    says of it, but for what machines decide.
    """
    is_inside = path.resolve().is_relative_to(folder.root.resolve())
    settings, others = (
        {name: x for name, x in held.get("settings", {}).items() if name not in OF_MACHINES}
        for held in (content, newest)
    )
    require(
        is_inside or (content["run"] == newest["run"] and settings == others),
        f"--checkpoint: {str(path)!r} is of another run than {str(folder.root)!r}; name the "
        "folder of its own",
    )


def _tell_nothing(folder: RunFolder) -> str:
    """Return why a folder without checkpoints has none, and what to do."""
    root = str(folder.root)
    if folder.config.is_file():
        return (
            f"export: the run {root!r} has saved no checkpoint yet; train it with lit-sft fit "
            f"--config {folder.config}"
        )
    if (folder.root / CONFIG).is_file():
        return (
            f"export: {root!r} is an adapter's folder; name that of its run. An adapter without a "
            "run is merged by PEFT's merge_and_unload"
        )
    return f"export: {root!r} is no run's folder: it has neither a config.yaml nor checkpoints"
