"""Push the adapter, or the whole model, to the Hugging Face Hub."""

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lit_sft.errors import require
from lit_sft.export.hub import Target, require_right, upload
from lit_sft.run.folder import RunFolder, is_trial


class HubUpload(pl.Callback):
    """Upload the run's `adapter` folder once training has ended, or its `model` if it has that.

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
        self.target = Target(repo_id, private, retries, wait_seconds)
        self.target.check("HubUpload.")

    @rank_zero_only
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Create the repository, and ask for the right to write in it, before the model loads.

        Raises:
            InputError: If there is no login, no right to write, or no Hub.
        """
        if stage == "fit" and not is_trial(trainer):
            require_right(self.target, "HubUpload")

    @rank_zero_only
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Upload: the run is over, and everything else is done and said.

        Raises:
            UploadError: If the adapter did not reach the Hub.
        """
        if stage != "fit" or is_trial(trainer):
            return
        folder = RunFolder.of(trainer).trained
        require(
            folder.is_dir(),
            f"HubUpload: there is no {folder}; add lit_sft.callbacks.save_adapter.SaveAdapter",
        )
        address = upload(folder, self.target, f"Upload {folder.name}", rank_zero_info)
        rank_zero_info(f"uploaded the {folder.name} to {address}")
