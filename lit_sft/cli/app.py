"""The command line: a LightningCLI over `SFTModule` and `SFTDataModule`.

`lit-sft fit` parses, checks what can be checked without weights, and calls `Trainer.fit`, which
calls `SFTModule.training_step`: from here to the loss there is nothing else of this package.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only

from lit_sft.callbacks.checkpoint import LAST, PREVIOUS, LastCheckpoint
from lit_sft.callbacks.memory_advice import MemoryAdvice
from lit_sft.callbacks.progress import Progress
from lit_sft.callbacks.record_run import RecordRun
from lit_sft.callbacks.save_adapter import SaveAdapter
from lit_sft.callbacks.summary import Summary
from lit_sft.callbacks.write_predictions import WritePredictions
from lit_sft.cli.allowlist import limit_imports
from lit_sft.cli.failures import explain, has_rank_zero_ended
from lit_sft.cli.options import SEEDED
from lit_sft.cli.parser import Parser
from lit_sft.data.datamodule import SFTDataModule
from lit_sft.errors import InputError, require
from lit_sft.export.adapter_folder import ADAPTER
from lit_sft.files import replace_file, require_writable
from lit_sft.model.module import SFTModule
from lit_sft.model.precision import (
    PrecisionName,
    choose_precision,
    describe_device,
    find_device,
    require_precision,
)
from lit_sft.model.threads import limit_threads
from lit_sft.model.trainer_options import require_known_options, require_limits
from lit_sft.run.checkpoint_io import AtomicCheckpointIO, choose_checkpoint
from lit_sft.run.lock import hold_folder
from lit_sft.run.metrics_file import MetricsFile
from lit_sft.run.wandb_run import WandbRun
from lit_sft.signals import SIGNALS

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
TRAINER_DEFAULTS = {
    "default_root_dir": "runs/latest",
    "deterministic": True,  # two runs, and a resumed one, give the same bits on a GPU, too
    "logger": False,  # `logs/metrics.csv` is always written; this adds others
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "enable_checkpointing": True,
    "use_distributed_sampler": False,  # windows are shared out by SFTDataModule
}


class SaveConfig(SaveConfigCallback):
    """Write `config.yaml`, the exact run, under the run's folder before training."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write it when the run trains; other commands leave the folder's config alone."""
        if stage == "fit":
            config = self.config.clone()
            # Where and how a run was taken up again is not what it is.
            config.ckpt_path, config.resume_policy = None, "strict"
            config.model.accept_changes = []
            with replace_file(Path(trainer.default_root_dir) / "config.yaml") as staged:
                staged.write_text(self.parser.dump(config, skip_unset=False))


class TrainerParser(Parser, LightningArgumentParser):
    """The parser with Lightning's way of adding classes, and a precision that may be left open."""

    def add_lightning_class_args(self, lightning_class: Any, *args: Any, **kwargs: Any) -> Any:
        """Add the options of a class; the trainer's precision gets a default of its own."""
        if lightning_class is not pl.Trainer:
            return super().add_lightning_class_args(lightning_class, *args, **kwargs)
        names = self.add_class_arguments(
            pl.Trainer,
            "trainer",
            fail_untyped=False,
            instantiate=False,
            sub_configs=True,
            skip={"precision"},
        )
        self.add_argument(
            "--trainer.precision",
            type=PrecisionName | None,
            default="auto",
            help="bf16-mixed or 32-true; auto takes what the device computes natively.",
        )
        return names


class SFTCommandLine(LightningCLI):
    """`lit-sft fit | validate | test | predict`; all of it happens in the constructor."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with ExitStack() as self._held:
            super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what concerns checkpoints, and let one seed decide all."""
        parser.add_argument(
            "--resume_policy",
            type=Literal["strict", "fallback"],
            default="strict",
            help="Whether --ckpt_path last may take the checkpoint before where it is damaged.",
        )
        parser.add_lightning_class_args(LastCheckpoint, "checkpoint")
        for seeded in SEEDED:
            parser.link_arguments("seed_everything", seeded, compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: what the command line says wins over what a checkpoint remembers."""

    def before_instantiate_classes(self) -> None:
        """Refuse, before any class is built, what Lightning would refuse late or not at all."""
        config = self.config[self.subcommand]
        trainer, root = config.trainer, Path(config.trainer.default_root_dir)
        trainer.precision = _resolve_precision(trainer.precision, trainer.accelerator)
        if trainer.max_epochs is None and trainer.max_steps == -1:
            trainer.max_epochs = 1  # a schedule needs an end; who sets one limit has set both
        require_known_options(trainer)
        if self.subcommand == "fit":
            require_limits(trainer)
        if config.ckpt_path not in (None, "last", "auto"):
            path = config.ckpt_path
            require(Path(path).is_file(), f"ckpt_path: there is no checkpoint {path!r}")
        self._hold_folder(config)
        is_asked_to_go_on = config.ckpt_path is not None
        if config.ckpt_path == "auto" and not (root / LAST).exists():
            config.ckpt_path = None  # it was interrupted before there was anything to save
        if config.ckpt_path in ("last", "auto"):
            newest_first = [root / LAST, root / PREVIOUS]
            config.ckpt_path = choose_checkpoint(newest_first, config.resume_policy == "fallback")
            config.ckpt_path = str(config.ckpt_path)
        if self.subcommand == "fit":
            require(
                is_asked_to_go_on or not any((root / path).exists() for path in (LAST, ADAPTER)),
                f"trainer.default_root_dir: {str(root)!r} holds a run already; go on with it "
                "(--ckpt_path last), choose another folder, or delete it",
            )

    def _hold_folder(self, config: Any) -> None:
        """Keep other runs out of the folder, before it is asked what there is to go on from."""
        trainer, root = config.trainer, Path(config.trainer.default_root_dir)
        if self.subcommand not in ("fit", "predict") or trainer.fast_dev_run:
            return  # nothing is written
        if config.ckpt_path != "last" or root.is_dir():  # otherwise there is no checkpoint
            require_writable(root, "trainer.default_root_dir")
            self._held.enter_context(hold_folder(root, self.subcommand))

    def after_instantiate_classes(self) -> None:
        """Look at the base model's config before any row is encoded."""
        self.model.check_base()
        if self.trainer.strategy.root_device.type == "cpu":
            width = self.model.base_config.get_text_config().hidden_size
            limit_threads(width, self.trainer.num_devices)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add what every run has: checkpoints that survive a crash, and a file of figures."""
        config = self._get(self.config_init, "trainer")
        plugins, loggers = _as_list(config.plugins), _as_list(config.logger)
        if self.subcommand != "fit":
            loggers = []  # they would write over what the training run has logged
        else:
            for logger in loggers:
                if isinstance(logger, WandbRun):
                    logger.keep_in(config.default_root_dir)
            loggers = [MetricsFile(config.default_root_dir), *loggers]
        if config.enable_progress_bar is False:
            silent = [x for x in self.trainer_defaults["callbacks"] if not isinstance(x, Progress)]
            self.trainer_defaults["callbacks"] = silent
        workspace = os.environ.get(WORKSPACE)
        try:
            trainer = super().instantiate_trainer(
                plugins=[*plugins, AtomicCheckpointIO()], logger=loggers, **kwargs
            )
        except ValueError as error:  # such as a strategy that the accelerator has not
            raise InputError(f"trainer: {' '.join(str(error).split())}") from error
        if workspace:  # Lightning has set its own, before anything has asked for the device
            os.environ[WORKSPACE] = workspace
        return trainer


def run(arguments: Sequence[str]) -> int:
    """Run a command line, and return its exit status.

    What the user can mend is one line on stderr, without a traceback.

    Args:
        arguments: Those after the program's name.
    """
    sys.argv[1:] = arguments
    launcher = os.getppid()
    try:
        limit_imports()
        SFTCommandLine(
            SFTModule,
            SFTDataModule,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            parser_class=TrainerParser,
            seed_everything_default=0,
            trainer_defaults=TRAINER_DEFAULTS | {"callbacks": _callbacks_of_every_run()},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except Exception as error:
        if has_rank_zero_ended(launcher, error):
            return 1  # and has told why
        ending = explain(error)
        if ending is None:
            raise
        status, text = ending
        print(text, file=sys.stderr)
        # What fails behind a signal, such as for a rank that is gone, most likely fails for it.
        return 128 + SIGNALS.received if SIGNALS.received else status
    return 0


def _callbacks_of_every_run() -> list[pl.Callback]:
    return [Progress(), MemoryAdvice(), RecordRun(), SaveAdapter(), WritePredictions(), Summary()]


def _resolve_precision(asked: str | int | None, accelerator: Any) -> str:
    """Return the precision of a run, and say it where it was left open."""
    device = describe_device(find_device(accelerator))
    if asked not in (None, "auto"):
        return require_precision(asked, device)
    precision, reason = choose_precision(device)
    rank_zero_only(print)(f"precision {precision}: {reason}", flush=True)
    return precision


def _as_list(value: Any) -> list[Any]:
    if value in (None, False, True):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
