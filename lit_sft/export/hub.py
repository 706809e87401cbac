"""Folders on the Hugging Face Hub: first the right to write, then a commit, tried until it is."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lit_sft.errors import InputError, UploadError, require

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

TEXTS = ("*.json", "*.jinja", "*.txt", "README.md", "Modelfile")
FILES = (*TEXTS, "*.safetensors", "*.gguf", "*.model")
"""Of a folder, what is uploaded: nothing that a user or a tool has left there besides."""
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
ADVICE = {
    401: LOG_IN,
    403: "the login may not write there; use a token with write access, or another name",
}
UNREACHABLE = "the Hub cannot be reached; check the network"


class Target(NamedTuple):
    """Where a folder goes, and how often that is tried.

    Attributes:
        repo_id: `owner/name`.
        private: Whether a repository that is created is private.
        retries: Attempts after the first, each after twice the wait of the one before.
        wait_seconds: Before the first retry.
    """

    repo_id: str
    private: bool = True
    retries: int = 5
    wait_seconds: float = 2.0

    def check(self, who: str) -> None:
        """Raise `InputError` for what cannot be; `who` names the options."""
        require(
            len(self.repo_id.split("/")) == 2 and all(self.repo_id.split("/")),
            f"{who}repo_id must read owner/name, got {self.repo_id!r}",
        )
        require(self.retries >= 0, f"{who}retries must not be negative, got {self.retries}")
        require(
            self.wait_seconds >= 0, f"{who}wait_seconds must not be negative: {self.wait_seconds}"
        )


def require_right(target: Target, who: str) -> None:
    """Create a repository if need be, and ask for the right to write in it.

    Args:
        target: Where a folder is to go.
        who: Wants it, for the error.

    Raises:
        InputError: If there is no login, no right to write, or no Hub.
    """
    from huggingface_hub import auth_check, create_repo, get_token

    require(
        bool(get_token()), f"{who}: {target.repo_id!r} cannot be written without a login: {LOG_IN}"
    )
    try:
        create_repo(target.repo_id, private=target.private, exist_ok=True)
        # The line above also passes for somebody else's public repository.
        auth_check(target.repo_id, write=True)
    except Exception as error:  # of the client, of its HTTP library, or of the socket
        status = _status(error)
        advice = ADVICE.get(status, "look at its name") if status else UNREACHABLE
        raise InputError(
            f"{who}: {target.repo_id!r} cannot be written ({_first_line(error)}): {advice}"
        ) from error


def upload(folder: Path, target: Target, message: str, say: Callable[[str], object]) -> str:
    """Upload the files of a folder, and return the address of the repository.

    Files that have arrived are not sent again: neither by a retry nor by the next upload.

    Args:
        folder: Stays as it is.
        target: Where it goes.
        message: Of the commit.
        say: Is told of each failed attempt.

    Raises:
        InputError: If one holds the token of the login.
        UploadError: If they did not arrive; what was there before is as it was.
    """
    _require_no_token(folder)
    try:
        return str(_commit(folder, target, message, say).repo_url)
    except Exception as error:  # whatever it is, what is in the folder must outlive it
        raise UploadError(
            f"the {folder.name} did not reach {target.repo_id} ({_first_line(error)}). It is safe "
            f"in {folder}; send it with: lit-sft push {folder} {target.repo_id}"
        ) from error


def _commit(
    folder: Path, target: Target, message: str, say: Callable[[str], object]
) -> "CommitInfo":
    """Return the commit; the client repeats failed transfers, but never a failed commit."""
    from huggingface_hub import upload_folder

    attempt = 0
    while True:
        try:
            return upload_folder(
                repo_id=target.repo_id,
                folder_path=folder,
                allow_patterns=list(FILES),
                commit_message=message,
            )
        except Exception as error:
            if attempt == target.retries or not _may_pass(error):
                raise
            wait = target.wait_seconds * 2**attempt
            say(f"the upload failed ({_first_line(error)}); again in {wait:g} s")
            time.sleep(wait)
            attempt += 1


def _require_no_token(folder: Path) -> None:
    from huggingface_hub import get_token

    token = get_token()
    for path in (found for pattern in TEXTS for found in folder.rglob(pattern)):
        require(
            not token or token.encode() not in path.read_bytes(),
            f"{path} holds the token of your login; take it out, and make a new one",
        )


def _may_pass(error: BaseException) -> bool:
    """Tell a fault that time can mend from a refusal."""
    status = _status(error) or _status(error.__cause__)
    return status is None or status >= 500 or status in (408, 409, 429)


def _status(error: BaseException | None) -> int | None:
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
