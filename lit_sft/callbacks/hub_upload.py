"""Push the adapter to the Hugging Face Hub."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lit_sft.errors import InputError, UploadError, require
from lit_sft.run.folder import RunFolder, is_trial

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

UPLOADED = ("*.json", "*.safetensors", "*.jinja", "README.md")
ADVICE = {
    401: "log in with `hf auth login`, or set HF_TOKEN",
    403: "the login may not write there; use a token with write access, or another repo_id",
}
UNREACHABLE = "the Hub cannot be reached; check the network, or leave HubUpload out of the config"


class HubUpload(pl.Callback):
    """Upload the run's `adapter` folder once training has ended.

    Whether there is a login with the right to write is found out before training. If the upload
    fails for good, the adapter is safe on disk, the message says how to push it by hand, and the
    run ends with an error.

    Args:
        repo_id: `owner/name`; created if it does not exist.
        private: Whether a repository that this run creates is private.
        retries: Attempts after the first, each after twice the wait of the one before.
        wait_seconds: Before the first retry.
    """

    def __init__(
        self, repo_id: str, private: bool = True, retries: int = 5, wait_seconds: float = 2.0
    ) -> None:
        require(
            len(repo_id.split("/")) == 2 and all(repo_id.split("/")),
            f"HubUpload.repo_id must read owner/name, got {repo_id!r}",
        )
        require(retries >= 0, f"HubUpload.retries must not be negative, got {retries}")
        require(wait_seconds >= 0, f"HubUpload.wait_seconds must not be negative: {wait_seconds}")
        self.repo_id, self.private = repo_id, private
        self.retries, self.wait_seconds = retries, wait_seconds

    @rank_zero_only
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Create the repository, and ask for the right to write in it, before the model loads.

        Raises:
            InputError: If there is no login, no right to write, or no Hub.
        """
        if stage != "fit" or is_trial(trainer):
            return
        from huggingface_hub import auth_check, create_repo

        try:
            create_repo(self.repo_id, private=self.private, exist_ok=True)
            # The line above also passes for somebody else's public repository.
            auth_check(self.repo_id, write=True)
        except Exception as error:  # of the client, of its HTTP library, or of the socket
            status = _status(error)
            advice = ADVICE.get(status, "look at repo_id") if status else UNREACHABLE
            raise InputError(
                f"HubUpload: {self.repo_id!r} cannot be written ({_first_line(error)}): {advice}"
            ) from error

    @rank_zero_only
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Upload: the run is over, and everything else is done and said.

        Raises:
            UploadError: If the adapter did not reach the Hub.
        """
        if stage != "fit" or is_trial(trainer):
            return
        folder = RunFolder.of(trainer).adapter
        require(
            folder.is_dir(),
            f"HubUpload: there is no {folder}; add lit_sft.callbacks.save_adapter.SaveAdapter",
        )
        try:
            rank_zero_info(f"uploaded the adapter to {self._upload(folder).repo_url}")
        except Exception as error:  # whatever it is, the trained adapter must outlive it
            raise UploadError(
                f"the adapter did not reach {self.repo_id} ({_first_line(error)}). It is safe in "
                f"{folder}; push it with: hf upload {self.repo_id} {folder}"
            ) from error

    def _upload(self, folder: Path) -> "CommitInfo":
        """Return the commit; the client repeats failed transfers, but never a failed commit."""
        from huggingface_hub import upload_folder

        attempt = 0
        while True:
            try:
                return upload_folder(
                    repo_id=self.repo_id,
                    folder_path=folder,
                    allow_patterns=list(UPLOADED),
                    commit_message="Upload adapter",
                )
            except Exception as error:
                if attempt == self.retries or not _may_pass(error):
                    raise
                wait = self.wait_seconds * 2**attempt
                rank_zero_info(f"the upload failed ({_first_line(error)}); again in {wait:g} s")
                time.sleep(wait)
                attempt += 1


def _may_pass(error: BaseException) -> bool:
    """Tell a fault that time can mend from a refusal."""
    status = _status(error) or _status(error.__cause__)
    return status is None or status >= 500 or status in (408, 409, 429)


def _status(error: BaseException | None) -> int | None:
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
