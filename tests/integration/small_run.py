"""The options and the environment of a training run of a second, which reaches nothing outside."""

from pathlib import Path

NOBODY = "http://127.0.0.1:9"
"""The discard port, where nothing listens: a connection is refused at once."""


def fit_options(base: Path, folder: Path, steps: int = 4, report: bool = False) -> list[str]:
    """Return the options of `fit` that train a base for a few steps, one validation included.

    The page about the run takes a second; most tests do without.
    """
    options = {
        "report": str(report).lower(),
        "model.base_model": base,
        "data.task": "lit_sft.WordProblems",
        "data.task.train_rows": 32,
        "data.val_rows": 4,
        "data.batch_size": 2,
        "data.accumulate_grad_batches": 1,
        "trainer.default_root_dir": folder,
        "trainer.max_steps": steps,
        "trainer.val_check_interval": 4,
        "trainer.precision": "32-true",
        "trainer.accelerator": "cpu",
    }
    return [f"--{name}={value}" for name, value in options.items()]


def isolated(home: Path, **others: str) -> dict[str, str]:
    """Return an environment with a home of its own, without logins and without the Hub and W&B."""
    return {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_ENDPOINT": NOBODY,
        "HF_TOKEN": "",
        "LIT_SFT_CACHE": str(home / "lit_sft"),
        "NETRC": str(home / "netrc"),
        "WANDB_API_KEY": "",
        "WANDB_BASE_URL": NOBODY,
        **{f"WANDB_{name}_DIR": str(home) for name in ("CACHE", "CONFIG", "DATA")},
        **others,
    }
