"""Which weights a command runs, and what `lit-sft test` has measured of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl

from lit_sft.files import replace_file
from lit_sft.model.module import SFTModule
from lit_sft.model.saved_adapter import PROVENANCE
from lit_sft.run.checkpoint_io import AtomicCheckpointIO
from lit_sft.run.folder import RunFolder


class Weights(NamedTuple):
    """What answers."""

    label: str
    """For the name of a file."""
    text: str
    """For the screen."""
    checkpoint: str | None
    step: int | None


def find_weights(trainer: pl.Trainer, module: SFTModule) -> Weights:
    """Return which weights a trainer validates, tests or predicts with.

    Args:
        trainer: In one of these, from `setup` on.
        module: What it runs.
    """
    path = trainer.ckpt_path
    if path:
        step = int(AtomicCheckpointIO().load_checkpoint(path)["global_step"])
        name = Path(path).name
        return Weights(f"step-{step}", f"{path}, after {step:,} steps", name, step)
    if module.adapter:
        return Weights("adapter", f"the adapter {module.adapter}", None, None)
    return Weights("base", f"the base {module.base_model} as it is", None, None)


def write_measured(folder: RunFolder, weights: Weights, record: Mapping[str, object]) -> Path:
    """Write what was measured of some weights in place of what was before; return the file."""
    path = folder.measured / f"test-{weights.label}.json"
    with replace_file(path) as staged:
        staged.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def read_measured(folder: RunFolder, adapter: Path) -> dict[str, object]:
    """Return what was measured of the very weights of an adapter's folder; empty for nothing.

    Args:
        folder: Of the run.
        adapter: Whose `lit_sft.json` says which weights it holds.
    """
    try:
        about = json.loads((adapter / PROVENANCE).read_text(encoding="utf-8"))
        path = folder.measured / f"test-step-{about['step']}.json"
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError):
        return {}
    same = ("base_sha256", "template_sha256", "step")
    return record if all(record.get(name) == about.get(name) for name in same) else {}
