"""What a run's folder holds: the path of every file that a run writes or reads there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lit_sft.errors import require

if TYPE_CHECKING:
    import lightning.pytorch as pl


class RunFolder:
    """The folder of one run.

    Args:
        root: Where it is, as `trainer.default_root_dir`; it need not exist.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        """The exact run, as the command line resolved it."""
        self.metrics = self.root / "logs" / "metrics.csv"
        """A row an optimizer step."""
        self.generations = self.root / "logs" / "generations.jsonl"
        """Sample answers with their verdicts."""
        self.answers = self.root / "logs" / "answers.jsonl"
        """Every answer of every evaluation, see `lit_sft.run.answer_file`."""
        self.sessions = self.root / "logs" / "sessions.jsonl"
        """When and where a process began to train here, and how it ended."""
        self.report = self.root / "report.html"
        """What a person looks at."""
        self.last_checkpoint = self.root / "checkpoints" / "last.ckpt"
        """To go on from."""
        self.previous_checkpoint = self.root / "checkpoints" / "previous.ckpt"
        """The one before, for the case that the last is damaged later."""
        self.adapter = self.root / "adapter"
        """For PEFT and the Hub."""
        self.model = self.root / "model"
        """For transformers, of a run that trained all weights; it has no `adapter`."""
        self.export = self.root / "export"
        """Of `lit-sft export`, a folder for a format."""
        self.predictions = self.root / "predictions.jsonl"
        """A line a prompt."""
        self.partial_predictions = self.root / "predictions.jsonl.part"
        """The same, as long as it is not complete."""
        self.measured = self.root / "measured"
        """What `lit-sft test` came to, a file for the weights that were tested."""
        self.wandb_id = self.root / "wandb" / "run_id"
        """Of the run of W&B that goes on when this one does."""

    @property
    def trained(self) -> Path:
        """What a run that has ended left for others: the whole model, or its adapter."""
        return self.model if self.model.is_dir() else self.adapter

    @classmethod
    def of(cls, trainer: pl.Trainer) -> RunFolder:
        """Return the folder that a trainer's run writes."""
        return cls(trainer.default_root_dir)

    def lock(self, command: str) -> Path:
        """Return the file that a process locks as long as it runs a command here."""
        return self.root / f".{command}.lock"

    def results(self) -> list[Path]:
        """Return what a training run has left here."""
        paths = (
            *(self.adapter, self.model, self.last_checkpoint),
            *(self.metrics, self.generations, self.config),
        )
        return [path for path in paths if path.exists()]

    def read_config(self) -> dict[str, Any]:
        """Return the run's config; empty for a run that was not started by the command line."""
        config: dict[str, Any] | None = None
        if self.config.is_file():
            config = yaml.safe_load(self.config.read_text())
        return config or {}

    def require_no_run(self, how: str) -> None:
        """Raise `InputError` if a new run would write over one that is here.

        Args:
            how: To go on with it, such as "--ckpt_path last".
        """
        require(
            not any(path.exists() for path in (self.last_checkpoint, self.trained)),
            f"trainer.default_root_dir: {str(self.root)!r} holds a run already; go on with it "
            f"({how}), choose another folder, or delete it",
        )


def is_trial(trainer: pl.Trainer) -> bool:
    """Return whether a trainer only tries a run out (`fast_dev_run`), and writes nothing."""
    return bool(getattr(trainer, "fast_dev_run", False))
