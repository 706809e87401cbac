"""Write files and folders whole or not at all, and remove what a kill left of them.

What is written is staged in a folder beside its target, `.NAME.KERNEL.RANDOM.tmp`. Its writer holds
a lock (`flock`) on that folder, which the kernel releases when the writer dies: a staging folder
that can be locked has no writer, whatever process ids say, which repeat from one container to the
next. The lock is asked for only under the kernel that granted it, where it holds on any file system
that has locks; of another host's folders, and where folders have no locks (NFS), age decides. A
library may replace the staged file, or stage for itself: all of it is in the folder.
"""

import ctypes
import fcntl
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from lit_sft.errors import require

STAGING = re.compile(r"\.(?P<target>.+)\.(?P<kernel>[0-9a-f]{8})\.[0-9a-f]{8}\.tmp")
"""How the folders are named in which files and folders are staged."""
ABANDONED_SECONDS = 86400
"""Without any change, after which a staging folder of another host is taken for a dead one's."""


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file takes the place of `path` once all is on disk.

    Whatever fails inside, and wherever the process is killed, `path` is the old file or the new
    one, never a part. It is staged beside the target: that costs no copy across file systems. An
    `OSError` that names no file, as that of a full disk, is given the name of this one.
    """
    with _stage(path) as folder:
        staged = folder / path.name
        try:
            yield staged
            sync(staged)
        except OSError as error:
            if error.errno is not None and error.filename is None:
                error.filename = str(path)
            raise
        staged.replace(path)
        sync(path.parent)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder, which takes the place of the folder `path` once all is on disk.

    Wherever the process is killed, `path` is the old folder or the new one, whole. Where the system
    cannot exchange two folders in one step (other than Linux, some network file systems), a kill
    between two renames leaves the old one in the staging folder, from where `remove_leftovers`
    brings it back.
    """
    with _stage(path) as folder:
        staged, old = folder / path.name, _old(folder, path)
        staged.mkdir()
        yield staged
        allowed = staged.stat().st_mode & 0o666  # by the umask; libraries write for the owner alone
        for file in (*staged.rglob("*"), staged):
            if file.is_file():
                file.chmod(allowed)
            sync(file)
        if not _exchange(staged, path):
            try:
                if path.exists():
                    path.replace(old)
                staged.replace(path)
            finally:
                _bring_back(old, path)
        sync(path.parent)


def remove_leftovers(folder: Path, is_held: bool = False) -> None:
    """Remove the staging folders in a folder whose writers are gone; what cannot be stays.

    Args:
        folder: Not looked into any deeper.
        is_held: Whether the caller alone writes there, by a lock that other hosts heed: then what
            they have left is removed at once, too.
    """
    with suppress(OSError):
        for place in [*folder.iterdir()]:
            if name := STAGING.fullmatch(place.name):
                with suppress(OSError):
                    _remove_leftover(place, folder / name["target"], name["kernel"], is_held)


def find_refusal(error: BaseException) -> str | None:
    """Return what the system said, such as "No space left on device", behind a library's error.

    None where no part of the error is of the system. Torch has an error of its own for an archive
    that it could not close, and libraries in Rust give their errors as text.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.strerror
        if code := re.search(r"\(os error (\d+)\)$", str(cause)):
            return os.strerror(int(code[1]))
        cause = cause.__context__
    return None


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


def sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _stage(path: Path) -> Iterator[Path]:
    """Yield a new folder beside a path, locked until it is removed at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    while True:
        folder = path.with_name(f".{path.name}.{_name_kernel()}.{secrets.token_hex(4)}.tmp")
        folder.mkdir()
        with suppress(FileNotFoundError):  # another process has removed it before it was locked
            handle = os.open(folder, os.O_RDONLY)
            if _lock(handle) is not False and folder.exists():
                break
            os.close(handle)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _remove_leftover(place: Path, target: Path, kernel: str, is_held: bool) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        lock = _lock(handle) if kernel == _name_kernel() else None
        newest = max(x.stat().st_mtime for x in (place, *place.iterdir()))
        is_old = is_held or time.time() - newest > ABANDONED_SECONDS
        if lock or (lock is None and is_old):
            _bring_back(_old(place, target), target)
            shutil.rmtree(place, ignore_errors=True)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool | None:
    """Return whether the lock was free, and is now held; None where there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@cache
def _name_kernel() -> str:
    """Return eight hexadecimal digits that all containers under one running kernel share."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:  # not Linux
        return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _old(folder: Path, target: Path) -> Path:
    return folder / f"{target.name}.old"


def _bring_back(old: Path, path: Path) -> None:
    if old.exists() and not path.exists():
        old.replace(path)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths that exist swap what they name, in one step; return whether that was done."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, TypeError):  # not Linux
        return False
    here, exchange = -100, 2  # AT_FDCWD of fcntl.h, RENAME_EXCHANGE of linux/fs.h
    done: int = renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange)
    return done == 0
