"""Write files and folders whole or not at all."""

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_sft.errors import require


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which takes its place once all is on disk.

    Whatever fails inside, and wherever the process is killed, `path` is the old file or the new
    one, never a part. A temporary file beside the target costs no copy across file systems.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield staged
        _sync(staged)
        staged.replace(path)
        _sync(path.parent)
    finally:
        staged.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`, which takes its place once all is on disk.

    Wherever the process is killed, `path` is the old folder or the new one, whole. Where the system
    cannot exchange two folders in one step (other than Linux, some network file systems), a kill
    between two renames leaves the old one under a name that ends in `.old`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    old = staged.with_suffix(".old")
    try:
        yield staged
        for file in staged.rglob("*"):
            _sync(file)
        staged.chmod(0o755)
        if not _exchange(staged, path):
            if path.exists():
                path.replace(old)
            staged.replace(path)
        _sync(path.parent)
    finally:
        if old.exists() and not path.exists():
            old.replace(path)
        for folder in (staged, old):
            shutil.rmtree(folder, ignore_errors=True)


def require_writable(folder: Path, option: str) -> None:
    """Create a folder if need be, and prove that a file can be written in it.

    Raises:
        InputError: If it cannot; the message names the option that chose the folder.
    """
    problem = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = error.strerror
    require(
        problem is None,
        f"{option}: the folder {str(folder)!r} cannot be written ({problem}); choose another",
    )


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths that exist swap what they name, in one step; return whether that was done."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, TypeError):  # not Linux
        return False
    here, exchange = -100, 2  # AT_FDCWD of fcntl.h, RENAME_EXCHANGE of linux/fs.h
    done: int = renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange)
    return done == 0


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
