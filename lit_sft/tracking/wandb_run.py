"""Weights & Biases that never waits for an answer."""

import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger


class WandbRun(WandbLogger):
    """Lightning's `WandbLogger`, which goes offline by itself where there is no login.

    An offline run can be sent later with `wandb sync`. A token is read by W&B from the environment
    or its own files; it is no option here, so that it reaches no config, checkpoint or log.

    Args:
        project: Of the run.
        name: Of the run; W&B makes one up otherwise.
        id: Of a run to continue.
        save_dir: Where `wandb/` is made.
        offline: True never contacts the server; None decides by whether there is a login.
    """

    def __init__(
        self,
        project: str = "lit-sft",
        name: str | None = None,
        id: str | None = None,  # noqa: A002 (W&B's own name for it)
        save_dir: str = ".",
        offline: bool | None = None,
    ) -> None:
        if offline is None:
            is_online = os.environ.get("WANDB_MODE", "online") == "online"
            offline = is_online and not has_login()
        settings: Any = {"settings": {"silent": True}} if offline else {}
        super().__init__(
            project=project, name=name, id=id, save_dir=save_dir, offline=offline, **settings
        )


def has_login() -> bool:
    """Return whether W&B would find credentials without asking for them."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
