"""The command line: a LightningCLI over `SFTModule` and `SFTDataModule`.

`lit-sft fit` parses, checks what can be checked without weights, and calls `Trainer.fit`: it has
the data module read its rows, the module load its model, and then calls
`SFTModule.training_step` for each window. No loop of this package is between here and the loss.
"""

import os
import re
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from lit_sft.callbacks.checkpoint import LastCheckpoint
from lit_sft.callbacks.generation_eval import GenerationEval
from lit_sft.cli.allowlist import limit_imports
from lit_sft.cli.failures import conclude
from lit_sft.cli.meeting import flatten_config, prepare_to_meet
from lit_sft.cli.parser import Parser
from lit_sft.cli.sections import RETIRED, SEEDED, require_retired_on
from lit_sft.data.datamodule import SFTDataModule
from lit_sft.errors import InputError, require
from lit_sft.files import replace_file, require_writable
from lit_sft.model.agreement import digest_checkpoint, require_agreement
from lit_sft.model.device import PrecisionName, limit_threads
from lit_sft.model.module import SFTModule
from lit_sft.model.peers import PEERS
from lit_sft.model.sharded.choice import keep_strategy, require_shardable
from lit_sft.model.sharded.strategy import FSDP2
from lit_sft.model.trainer_options import require_limits
from lit_sft.report.report_page import write_report
from lit_sft.run.chosen_checkpoint import find_checkpoint
from lit_sft.run.folder import RunFolder, is_trial
from lit_sft.run.lock import hold_folder
from lit_sft.signals import SIGNALS
from lit_sft.trainer import TRAINER_DEFAULTS, build_trainer, report_callbacks, settle_options

LOGGERS = {"TensorBoardLogger": "lit_sft.TensorBoardRun", "WandbLogger": "lit_sft.WandbRun"}
"""Loggers of Lightning by their short names, and those that keep to the run: its folder, its
answers, and that it may be killed and resumed."""


class SaveConfig(SaveConfigCallback):
    """Write `config.yaml`, the exact run, under the run's folder before training."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write it, once all ranks are known to have the same.

        Raises:
            InputError: If another machine has been given another config.
        """
        checkpoint = digest_checkpoint(self.config.ckpt_path)
        require_agreement(flatten_config(self.config.as_dict()) | {"ckpt_path": checkpoint})
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write it when the run trains; other commands leave the folder's config alone."""
        if stage == "fit":
            config = self.config.clone()
            # Where and how a run was taken up again is not what it is.
            config.ckpt_path, config.resume_policy = None, "strict"
            config.model.accept_changes = []
            try:
                text = self.parser.dump(config, skip_unset=False)
            except ValueError as error:  # such as the default of Lightning's Timer
                value = re.search(r"<\w[\w.]*: [^>]*>", str(error))
                raise InputError(
                    f"config.yaml cannot hold {value[0] if value else 'the value of an option'}; "
                    "give it as a plain text or number"
                ) from error
            with replace_file(RunFolder.of(trainer).config) as staged:
                staged.write_text(text)


class TrainerParser(Parser, LightningArgumentParser):
    """The parser with Lightning's way of adding classes, and a precision that may be left open."""

    def add_lightning_class_args(self, lightning_class: Any, *args: Any, **kwargs: Any) -> Any:
        """Add the options of a class; the trainer's precision gets a default of its own."""
        if lightning_class is not build_trainer:
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

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the command that is asked for: the parsers of the others would take 0.1 s more."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in sys.argv[1:2] if name in known} or known

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what concerns checkpoints, and let one seed decide all."""
        parser.add_argument(
            "--resume_policy",
            type=Literal["strict", "fallback"],
            default="strict",
            help="Whether --ckpt_path last may take the checkpoint before where it is damaged.",
        )
        parser.add_argument(
            "--dry_run",
            type=bool | Literal["measure"],
            default=False,
            nargs="?",
            const=True,
            help="Tell the memory and the time of the run, and stop; measure takes three steps.",
        )
        parser.add_argument(
            "--report",
            type=bool,
            default=True,
            help="Whether fit writes report.html into the run's folder at its end.",
        )
        parser.add_lightning_class_args(LastCheckpoint, "checkpoint")
        for retired in RETIRED:
            parser.add_argument(f"--{retired}", type=bool, default=SUPPRESS, help=SUPPRESS)
        for seeded in SEEDED:
            parser.link_arguments("seed_everything", seeded, compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: what the command line says wins over what a checkpoint remembers."""

    def before_instantiate_classes(self) -> None:
        """Refuse, before any class is built, what Lightning would refuse late or not at all."""
        config = self.config[self.subcommand]
        self._dry_run = config.pop("dry_run", False)
        require(
            not self._dry_run or self.subcommand == "fit",
            f"--dry_run is of fit; {self.subcommand} takes none",
        )
        trainer, folder = config.trainer, RunFolder(config.trainer.default_root_dir)
        for retired in RETIRED:
            require_retired_on(retired, config.pop(retired, True))
        settle_options(trainer)
        if self.subcommand == "fit":
            require_limits(trainer)
        asked, may_fall_back = config.ckpt_path, config.resume_policy == "fallback"
        if not self._dry_run:  # which touches no folder
            self._hold_folder(config)
        self._checkpoint = config.ckpt_path = find_checkpoint(folder, asked, may_fall_back)
        if self._dry_run:  # it plans the whole run
            config.ckpt_path = None
        elif self.subcommand == "fit" and asked is None:
            folder.require_no_run("--ckpt_path last")

    def _hold_folder(self, config: Any) -> None:
        """Keep other runs out of the folder, before it is asked what there is to go on from."""
        trainer, root = config.trainer, Path(config.trainer.default_root_dir)
        if self.subcommand not in ("fit", "predict") or trainer.fast_dev_run:
            return  # nothing is written
        if (
            config.ckpt_path not in ("last", "best") or root.is_dir()
        ):  # otherwise there is no checkpoint
            require_writable(root, "trainer.default_root_dir")
            self._held.enter_context(hold_folder(root, self.subcommand))

    def after_instantiate_classes(self) -> None:
        """Look at the base model's config before any row is encoded."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        require(
            self.subcommand != "test"
            or self.datamodule.compare_with is None
            or any(isinstance(callback, GenerationEval) for callback in callbacks),
            "data.compare_with compares answers, which GenerationEval generates; add it to "
            "trainer.callbacks (--trainer.callbacks+=lit_sft.GenerationEval)",
        )
        require(
            self.subcommand != "validate" or bool(self.trainer.limit_val_batches),
            "trainer.limit_val_batches is 0 here, and nothing would be measured: "
            "--trainer.limit_val_batches 1.0 is all of val, the fraction of its rows",
        )
        strategy = self.trainer.strategy
        if self.subcommand == "fit":
            keep_strategy(strategy, self._checkpoint)
        earlier = getattr(strategy, "earlier", None)
        if getattr(strategy, "shards", False) or earlier == FSDP2:
            require_shardable(self.model, earlier)
        self.model.check_base()
        # Lightning's end moves the model to the CPU, which takes seconds of a process that ends.
        vars(self.model)["cpu"] = lambda: self.model
        if not self._dry_run:
            prepare_to_meet(self.trainer)
        if self.model.adapter and self.model.lora:  # whose shape it may have, for config.yaml
            for name, value in asdict(self.model.lora).items():
                self.config[self.subcommand].model.lora[name] = value
        if strategy.root_device.type == "cpu":
            width = self.model.base_config.get_text_config().hidden_size
            limit_threads(width, self.trainer.num_devices)

    def after_fit(self) -> None:
        """Write the page about the run; that it could not be written is no failure of the run."""
        PEERS.leave()
        trainer = self.trainer
        is_wanted = self.config.fit.report and not self._dry_run and not is_trial(trainer)
        if not is_wanted or not trainer.is_global_zero:
            return
        try:
            path = write_report([trainer.default_root_dir])
            for logger in trainer.loggers:
                if hasattr(logger, "log_report"):
                    logger.log_report(path)
            print(f"wrote {path}", flush=True)
        except Exception as error:
            print(f"report.html could not be written: {error}", file=sys.stderr)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer; what is no training run logs nothing, and leaves its figures alone."""
        trains = self.subcommand == "fit" and not self._dry_run
        silent: dict[str, Any] = {} if trains else {"logger": []}
        return super().instantiate_trainer(**silent, **kwargs)

    def fit(self, **arguments: Any) -> None:
        """Train, or tell what that would take."""
        if not self._dry_run:
            self.trainer.fit(**arguments)
            return
        from lit_sft.plan.dry_run import tell_plan

        tell_plan(self.trainer, self.model, self.datamodule, self._dry_run == "measure")


def name_loggers(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which short names of loggers mean those that keep to the run."""
    words = list(arguments)
    for place, word in enumerate(words):
        option, _, value = word.partition("=")
        if option.removesuffix("+") != "--trainer.logger":
            continue
        if value in LOGGERS:
            words[place] = f"{option}={LOGGERS[value]}"
        elif not value and place + 1 < len(words):
            words[place + 1] = LOGGERS.get(words[place + 1], words[place + 1])
    return words


def run(arguments: Sequence[str]) -> int:
    """Run a command line, and return its exit status.

    What the user can mend is one line on stderr, without a traceback.

    Args:
        arguments: Those after the program's name.
    """
    arguments = name_loggers(arguments)
    sys.argv[1:] = arguments
    parent = os.getppid()
    try:
        limit_imports()
        SFTCommandLine(
            SFTModule,
            SFTDataModule,
            trainer_class=build_trainer,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            parser_class=TrainerParser,
            seed_everything_default=0,
            trainer_defaults=TRAINER_DEFAULTS | {"callbacks": report_callbacks()},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except Exception as error:
        status = conclude(error, parent)
        # What fails behind a signal, such as for a rank that is gone, most likely fails for it.
        return 128 + SIGNALS.received if SIGNALS.received else status
    PEERS.leave()
    return 0
