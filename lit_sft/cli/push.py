"""`lit-sft push`: what a run has trained, or an export of it, on the Hugging Face Hub."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_sft.errors import InputError, UploadError, require
from lit_sft.export.card import add_test_figures
from lit_sft.export.hub import Target, require_right, upload
from lit_sft.files import replace_file
from lit_sft.model.saved_adapter import CONFIG, PROVENANCE
from lit_sft.model.trained import require_adapter
from lit_sft.run.folder import RunFolder
from lit_sft.run.measured import read_measured


def run(arguments: Sequence[str]) -> int:
    """Run `lit-sft push`, and return its exit status: 1 if it did not arrive, 2 for a wrong input.

    Args:
        arguments: Those after the program's name, `push` included.
    """
    options = make_parser().parse_args(list(arguments[1:]))
    target = Target(options.repo, not options.public, options.retries)
    try:
        target.check("push: ")
        folder = find_folder(Path(options.folder).expanduser())
        _show_progress(sys.stderr.isatty())
        require_right(target, "push")
        complete_card(folder)
        message = options.message or f"Upload {folder.name}"
        print(f"uploaded {folder} to {upload(folder, target, message, _say)}")
    except (InputError, UploadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, UploadError) else 2
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `lit-sft push`."""
    parser = argparse.ArgumentParser(
        prog="lit-sft push",
        description="Upload the adapter of a run, or the folder of an export.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="RUN_OR_FOLDER", help="Of a run, or of an export.")
    parser.add_argument("repo", metavar="REPO", help="owner/name; created where there is none.")
    parser.add_argument("--public", action="store_true", help="Let a new repository be public.")
    parser.add_argument("--retries", type=int, default=5, help="Attempts after the first.")
    parser.add_argument("--message", help="Of the commit.")
    return parser


def find_folder(place: Path) -> Path:
    """Return the folder to upload: an export's, an adapter's, or the adapter of a run.

    Raises:
        InputError: If it is none of them, or the run has not ended.
    """
    require(place.is_dir(), f"push: there is no folder {str(place)!r}")
    if any((place / name).is_file() for name in (PROVENANCE, CONFIG)):
        return place
    require_adapter(place, "push")
    return RunFolder(place).adapter


def complete_card(folder: Path) -> None:
    """Write into an adapter's card what `lit-sft test` has measured of these very weights.

    Args:
        folder: Where the run's is above it; of another, the card stays as it is.
    """
    card, run = folder / "README.md", RunFolder(folder.resolve().parent)
    is_own = folder.resolve() == run.adapter  # what was merged since is not what was tested
    figures = read_measured(run, folder) if is_own else {}
    if figures and card.is_file():
        text = card.read_text(encoding="utf-8")
        with replace_file(card) as staged:
            staged.write_text(add_test_figures(text, figures), encoding="utf-8")


def _show_progress(is_terminal: bool) -> None:
    """Leave the client its bars where they can move: in a log they are lines without an end."""
    if not is_terminal:
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
