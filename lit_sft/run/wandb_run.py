"""Weights & Biases that never waits for an answer, and never stands in the way of training."""

import netrc
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lit_sft.errors import InputError
from lit_sft.files import replace_file
from lit_sft.run.folder import RunFolder
from lit_sft.run.metrics_file import read_metrics


class WandbRun(WandbLogger):
    """Lightning's `WandbLogger`, made to outlive a missing login, a dead server and a killed run.

    Without a login, or when the server does not answer at the start, the run is kept offline, to be
    sent later with `wandb sync`. A row of W&B's history is an optimizer step. A resumed run goes on
    in the same W&B run, which then has every step once. A token is read by W&B from the environment
    or its own files; it is no option here, so that it reaches no config, checkpoint or log.

    Args:
        project: Of the run.
        name: Of the run; W&B makes one up otherwise.
        id: Of a run to continue; without one, the run's folder remembers it.
        save_dir: Where `wandb/` is made; without one, in the run's folder.
        offline: Never contact the server.
        init_timeout: Seconds to wait for the server before the run is kept offline.
        finish_timeout: Seconds to go on sending after the run has ended; what is left is on disk.
    """

    def __init__(
        self,
        project: str = "lit-sft",
        name: str | None = None,
        id: str | None = None,  # noqa: A002 (W&B's own name for it)
        save_dir: str | None = None,
        offline: bool = False,
        init_timeout: float = 30.0,
        finish_timeout: float = 300.0,
    ) -> None:
        settings = {
            "init_timeout": init_timeout,
            "finish_timeout": finish_timeout,
            "quiet": True,  # otherwise it asks a server that is down for the user's name, for 10 s
            # RecordRun logs the commit; W&B would add the remote's address, which may hold a token,
            # and the uncommitted changes.
            "disable_git": True,
        }
        super().__init__(
            project=project, name=name, id=id, save_dir=save_dir or ".", settings=settings
        )
        del self._wandb_init["anonymous"]  # W&B warns of it, and Lightning passes it always
        self._folder_is_given = save_dir is not None
        self._id_file: Path | None = None
        self._is_resumed = False
        if offline or (os.environ.get("WANDB_MODE", "online") == "online" and not has_login()):
            self._go_offline()

    def keep_in(self, folder: str | Path) -> None:
        """Put `wandb/` in the run's folder, and go on with the W&B run that began there.

        What the constructor was given comes first. `lit_sft.make_trainer` and the command line call
        it; with a `lightning.Trainer` of one's own, call it before the run starts.
        """
        if not self._folder_is_given:
            self._save_dir = self._wandb_init["dir"] = str(folder)
        if self._id is None:
            self._id_file = RunFolder(folder).wandb_id
            if self._id_file.is_file():
                self._id = self._id_file.read_text().strip()

    @property
    @rank_zero_experiment
    def experiment(self) -> object:
        """The `wandb.Run`, started at first use.

        Raises:
            InputError: If W&B refuses the login or the project's name.
        """
        return self._experiment or self._start()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add figures to the row of a step."""
        row = {**metrics, "trainer/global_step": step}
        if step is not None and int(step) >= self.experiment.starting_step:
            self.experiment.log(row, step=int(step))
        elif not self._is_resumed:  # an evaluation after the last step
            self.experiment.log(row)

    @rank_zero_only
    def log_report(self, path: Path) -> None:
        """Keep the report of the run as an artifact of it."""
        import wandb

        run = self.experiment
        artifact = wandb.Artifact(f"report-{run.id}", type="report")
        artifact.add_file(str(path), policy="immutable")  # no second copy of it
        run.log_artifact(artifact)

    @rank_zero_only
    def catch_up(self, metrics_file: Path) -> None:
        """Send the rows of a resumed run that were lost on their way when it was killed.

        The rows that W&B has got, here and in what follows, are not sent again.

        Args:
            metrics_file: The `metrics.csv` of the run, up to the step that it resumes from.
        """
        self._is_resumed = True
        for step, row in read_metrics(metrics_file)[1].items():
            figures = {name: float(value) for name, value in row.items() if name != "step"}
            self.log_metrics(figures, step)

    def _start(self) -> object:
        import wandb

        # An agent of a sweep has given the run its id.
        given = self._id or os.environ.get("WANDB_RUN_ID")
        self._id = self._wandb_init["id"] = given or secrets.token_hex(6)
        Path(self._wandb_init["dir"]).mkdir(parents=True, exist_ok=True)
        if self._id_file:
            with replace_file(self._id_file) as staged:
                staged.write_text(self._id)
        try:
            run: Any = super().experiment
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            line = next(iter(str(error).splitlines()), type(error).__name__)
            if not _is_outage(error):
                raise InputError(
                    f"WandbRun: W&B refuses the run ({line}). Log in with `wandb login`, or set "
                    "offline: true"
                ) from error
            rank_zero_info(f"W&B cannot be reached ({line}); the run is kept offline")
            wandb.teardown()  # otherwise the id is still in use
            self._go_offline()
            run = super().experiment
        if run.offline:
            rank_zero_info(f"W&B: offline; send it with: wandb sync {Path(run.dir).parent}")
        return run

    def _go_offline(self) -> None:
        self._wandb_init["mode"] = "offline"
        self._wandb_init["settings"]["silent"] = True  # one line says it all


def has_login() -> bool:
    """Return whether W&B would find credentials without asking for them."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _is_outage(error: Exception) -> bool:
    """Tell an answer that will not change from none at all; W&B has one type for both."""
    import wandb

    if isinstance(error, (wandb.errors.AuthenticationError, wandb.errors.UsageError)):
        return False
    return re.search(r"error (400|401|403|404)\b", str(error)) is None
