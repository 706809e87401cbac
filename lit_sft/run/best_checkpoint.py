"""Which checkpoint of a run is the best by the figure that a `ModelCheckpoint` monitors."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_sft.errors import require
from lit_sft.run.checkpoint_io import AtomicCheckpointIO
from lit_sft.run.folder import RunFolder
from lit_sft.run.metrics_file import read_metrics


class Best(NamedTuple):
    """The best evaluated weights of a run."""

    path: Path
    """Of the checkpoint; `last.ckpt` where the last step measured better than all before."""
    monitor: str
    """The figure that it is the best by, such as `val/exact_match`."""
    value: float


def best_of_trainer(trainer: pl.Trainer) -> Best | None:
    """Return the best weights of the run that a trainer is at the end of; see `find_best`."""
    callbacks: list[Any] = [x for x in trainer.callbacks if isinstance(x, ModelCheckpoint)]  # type: ignore[attr-defined]
    states = {callback.state_key: callback.state_dict() for callback in callbacks}
    return find_best(RunFolder.of(trainer), states, trainer.global_step)


def best_of_folder(folder: RunFolder) -> Best | None:
    """Return the best weights of a run that has ended or was interrupted; see `find_best`.

    Raises:
        InputError: If there is no checkpoint, or the last is damaged.
    """
    last = AtomicCheckpointIO().load_checkpoint(folder.last_checkpoint)
    return find_best(folder, last["callbacks"], last["global_step"])


def choose_best(folder: RunFolder) -> str:
    """Return the path of a run's best checkpoint, for `--ckpt_path best`.

    Raises:
        InputError: If there is none.
    """
    require(
        folder.last_checkpoint.is_file(),
        f"ckpt_path: there is no checkpoint {str(folder.last_checkpoint)!r}, and so no best one",
    )
    best = best_of_folder(folder)
    require(
        best is not None,
        f"ckpt_path: the run in {str(folder.root)!r} has no best checkpoint: none was kept by a "
        "figure. Use --ckpt_path last, or train with a ModelCheckpoint that has a monitor",
    )
    return str(best.path) if best else ""


def find_best(folder: RunFolder, states: Mapping[str, Any], step: int) -> Best | None:
    """Return the best evaluated weights, by the first `ModelCheckpoint` that monitors a figure.

    It may save at fewer steps than are measured, and may be behind the last checkpoint: so the last
    step counts too, where it was measured and is better than all that is kept.

    Args:
        folder: Of the run.
        states: Of its callbacks, by key, as a checkpoint holds them.
        step: The last one.

    Returns:
        None where nothing is monitored or was measured, or what was kept is gone.
    """
    for key, state in states.items():
        if not key.startswith("ModelCheckpoint") or not state.get("monitor"):
            continue
        monitor = str(state["monitor"])
        sign = -1.0 if re.search(r"'mode': 'min'", key) else 1.0
        found = [*_kept(folder, monitor, state), *_last(folder, monitor, step)]
        finite = [best for best in found if math.isfinite(best.value)]
        return max(finite, key=lambda best: sign * best.value, default=None)
    return None


def read_figures(folder: RunFolder, step: int) -> dict[str, float]:
    """Return the last value of each figure of a run up to a step."""
    figures: dict[str, float] = {}
    for number, row in sorted(read_metrics(folder.metrics)[1].items()):
        if number <= step:
            figures |= {name: float(value) for name, value in row.items() if name != "step"}
    return figures


def _kept(folder: RunFolder, monitor: str, state: Mapping[str, Any]) -> list[Best]:
    """Return what Lightning has kept; a run's folder may have been moved or copied since."""
    if not state.get("best_model_path") or state.get("best_model_score") is None:
        return []
    path = Path(state["best_model_path"])
    places = (folder.last_checkpoint.with_name(path.name), path)
    score = float(state["best_model_score"])
    return [Best(place, monitor, score) for place in places if place.is_file()][:1]


def _last(folder: RunFolder, monitor: str, step: int) -> list[Best]:
    value = read_metrics(folder.metrics)[1].get(step, {}).get(monitor)
    return [Best(folder.last_checkpoint, monitor, float(value))] if value else []
