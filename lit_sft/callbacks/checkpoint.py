"""The checkpoint that a run is resumed from, how one is interrupted, and the folder it holds."""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from lit_sft.errors import InterruptedRun, require
from lit_sft.files import replace_file, require_writable
from lit_sft.model.distributed import max_over_ranks
from lit_sft.model.module import SFTModule
from lit_sft.run.checkpoint_io import AtomicCheckpointIO
from lit_sft.run.folder import RunFolder, is_trial
from lit_sft.run.lock import hold_folder
from lit_sft.signals import SIGNALS


class LastCheckpoint(Checkpoint):
    """Keep `checkpoints/last.ckpt` under the run's folder: the one to resume from.

    A checkpoint stands between two optimizer steps, after all that was due at the earlier one: a
    validation that follows a step is done before the step is saved, so that a resumed run neither
    repeats nor misses one. Lightning's `ModelCheckpoint` beside it keeps the best by a metric.

    On SIGTERM, Ctrl-C, SIGHUP or SIGUSR1 the run goes on to the next such moment, saves, and ends
    with `InterruptedRun`; before the first step and behind the last, a command ends at once, as
    there is nothing to save. A second signal, two seconds later or more, ends it at once, too.

    All checkpoints of the run are written whole or not at all, see `AtomicCheckpointIO`. As long as
    the run lasts, no other one writes in its folder; one that began there before is gone on with,
    or left alone.

    Args:
        every_n_steps: Optimizer steps between two checkpoints, besides those after each validation
            and at the end.
        grace_seconds: How long a command goes on after a signal to come to that moment. An
            evaluation that takes longer is cut off, and the run goes on from the checkpoint before
            it. Schedulers send SIGKILL half a minute after SIGTERM, unless told otherwise.
    """

    def __init__(self, every_n_steps: int = 50, grace_seconds: float = 20.0) -> None:
        require(every_n_steps > 0, f"checkpoint.every_n_steps must be positive: {every_n_steps}")
        require(grace_seconds > 0, f"checkpoint.grace_seconds must be positive: {grace_seconds}")
        self.every_n_steps, self.grace_seconds = every_n_steps, grace_seconds
        self._saved_at = 0
        self._last_is_good = False
        self._held = ExitStack()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the folder, before the model loads.

        Raises:
            InputError: If another run has it.
        """
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if stage not in ("fit", "predict") or is_trial(trainer):
            return  # nothing is written
        folder = RunFolder.of(trainer)
        require_writable(folder.root, "trainer.default_root_dir")
        self._held.enter_context(hold_folder(folder.root, "fit" if stage == "fit" else "predict"))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave a run alone that this one does not go on with; the checkpoint is loaded by now.

        Raises:
            InputError: If a run would be lost that is in the folder already.
        """
        folder = RunFolder.of(trainer)
        is_new = trainer.ckpt_path is None and trainer.global_step == 0
        if is_new and folder.last_checkpoint.exists() and not is_trial(trainer):
            folder.require_no_run("ckpt_path=lit_sft.last_checkpoint(root)")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals from Lightning, which would stop in the middle of a window."""
        self._last_is_good = trainer.ckpt_path == str(RunFolder.of(trainer).last_checkpoint)
        SIGNALS.take()

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        """Let signals wait from the first step on."""
        SIGNALS.hold(self.grace_seconds)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: SFTModule, *args: object) -> None:
        """Save between validations, and at the last step, from where a longer run can go on."""
        step = trainer.global_step
        received = self._received_on_any_rank(pl_module.device)
        is_due = step % self.every_n_steps == 0 or step == pl_module.total_steps() or received
        if is_due and not _validation_follows(trainer):
            self._save(trainer)
            _stop(received)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after a validation inside training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)
            _stop(self._received_on_any_rank(pl_module.device))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save a run that ended early, such as by `trainer.max_time`; from here, nothing waits."""
        self._save(trainer)
        SIGNALS.release(
            "all steps are saved; --ckpt_path last does what is left, such as an upload"
        )
        _stop(self._received_on_any_rank(pl_module.device))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals and the folder back."""
        SIGNALS.give_back()
        self._held.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Give them back; there is no teardown after an error."""
        SIGNALS.release("the run had failed before")
        SIGNALS.give_back()
        self._held.close()

    def _save(self, trainer: pl.Trainer) -> None:
        if is_trial(trainer) or trainer.global_step == self._saved_at:
            return
        folder = RunFolder.of(trainer)
        last = folder.last_checkpoint
        with ExitStack() as stack:
            if trainer.is_global_zero and self._last_is_good:
                _hold_on_to(last, stack.enter_context(replace_file(folder.previous_checkpoint)))
            trainer.save_checkpoint(last)
        self._saved_at, self._last_is_good = trainer.global_step, True

    def _received_on_any_rank(self, device: torch.device) -> int:
        """Return the signal, the same on all ranks: they leave the loop together or not at all."""
        return SIGNALS.agree(max_over_ranks(SIGNALS.weight, device))


def _stop(received: int) -> None:
    if received:
        raise InterruptedRun(received)


def _hold_on_to(last: Path, held: Path) -> None:
    """Keep the file that is about to be replaced under another name; a link costs no disk."""
    try:
        os.link(last, held)
    except OSError:  # a file system without links
        shutil.copy2(last, held)


def _validation_follows(trainer: pl.Trainer) -> bool:
    """Ask Lightning's own rule, so that the two cannot disagree."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
