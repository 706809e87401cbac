"""Push the adapter to the Hugging Face Hub."""

import time
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lit_sft.errors import InputError, UploadError, require

UPLOADED = ("*.json", "*.safetensors", "*.jinja", "README.md")


class HubUpload(pl.Callback):
    """Upload the run's `adapter` folder once training has ended.

    Whether there is a login with the right to write is found out before training. If the upload
    fails for good, the adapter is safe on disk, the message says how to push it by hand, and the
    run ends with an error.

    Args:
        repo_id: `owner/name`; created if it does not exist.
        private: Whether a repository that this run creates is private.
        retries: Attempts after the first, each twice as long after the one before.
        wait_seconds: Before the first retry.
    """

    def __init__(
        self, repo_id: str, private: bool = True, retries: int = 4, wait_seconds: float = 2.0
    ) -> None:
        require(
            len(repo_id.split("/")) == 2 and all(repo_id.split("/")),
            f"HubUpload.repo_id must read owner/name, got {repo_id!r}",
        )
        require(retries >= 0, f"HubUpload.retries must not be negative, got {retries}")
        self.repo_id, self.private = repo_id, private
        self.retries, self.wait_seconds = retries, wait_seconds

    @rank_zero_only
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Create the repository before training: the one proof of a login that may write.

        Raises:
            InputError: If there is no login, no right to write, or no Hub.
        """
        if stage != "fit":
            return
        from huggingface_hub import create_repo
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

        try:
            create_repo(self.repo_id, private=self.private, exist_ok=True)
        except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
            raise InputError(
                f"HubUpload: {self.repo_id!r} cannot be written ({_first_line(error)}). Log in with "
                "`hf auth login` or set HF_TOKEN to a token with write access, or take the "
                "HubUpload callback out of the config"
            ) from error

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Upload, with retries: the client itself does not repeat a failed commit."""
        folder = Path(trainer.default_root_dir) / "adapter"
        require(folder.is_dir(), f"HubUpload: there is no {folder}; add the SaveAdapter callback")
        from huggingface_hub import upload_folder

        for attempt in range(self.retries + 1):
            try:
                commit = upload_folder(
                    repo_id=self.repo_id,
                    folder_path=folder,
                    allow_patterns=list(UPLOADED),
                    commit_message="Upload adapter",
                )
                rank_zero_info(f"uploaded to {commit.repo_url}")
                return
            except Exception as error:  # whatever it is, the trained adapter must outlive it
                failure = error
            if attempt < self.retries:
                time.sleep(self.wait_seconds * 2**attempt)
        raise UploadError(
            f"the adapter did not reach {self.repo_id} ({_first_line(failure)}). It is safe in "
            f"{folder}; push it with: hf upload {self.repo_id} {folder}"
        ) from failure


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
