"""Tell a local folder from a Hub id, before a library guesses."""

from pathlib import Path

from lit_sft.errors import InputError


def is_local(path: str) -> bool:
    """Return whether `path` names this machine rather than the Hub.

    A Hub id reads `owner/name`; whatever exists here, starts like a path, or has another number of
    parts is local.
    """
    return (
        path.startswith((".", "/", "~"))
        or len(Path(path).parts) != 2
        or Path(path).expanduser().exists()
    )


def require_folder(path: str, holding: str, option: str) -> Path:
    """Return the local folder `path`, which must hold the file `holding`.

    Args:
        path: A path for which `is_local` holds.
        holding: The file that tells a right folder from a wrong one.
        option: The option that named it, for the error.

    Raises:
        InputError: If the folder or the file is missing.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"{option}: there is no folder {path!r} (a Hub id reads owner/name)")
    if not (folder / holding).is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise InputError(f"{option}: the folder {path!r} has no {holding}; it holds {found}")
    return folder
