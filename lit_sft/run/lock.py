"""One run a folder: a lock that a run holds on the files that it writes, as long as it lives."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from lit_sft.errors import InputError
from lit_sft.files import remove_leftovers
from lit_sft.ranks import is_first_rank
from lit_sft.run.folder import RunFolder

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)
LOCKED_BYTE = 2**30
"""Far behind the text: where locks are mandatory (SMB), others can still read who holds it."""

_held: set[tuple[int, int, int]] = set()
"""Process, device and inode of each lock file that is open here."""


@contextmanager
def hold_folder(folder: Path, command: str = "fit") -> Iterator[None]:
    """Let nobody else run a command in a run's folder meanwhile.

    The lock is POSIX's, of a byte of the file `.COMMAND.lock` (`lockf`): it holds between the
    containers of one host and, more often than `flock`, between the hosts of a network file system.
    It is the process's own: loader workers do not inherit it, so that it is free as soon as the
    process is killed, even where they live on. What that costs: a process that closes the file
    releases it, so nothing here opens it a second time. The file stays, empty: if it were removed,
    two others could hold one of that name each.

    Only the first rank of a run takes it; the others write nothing, and so a rank that outlives the
    first, for some seconds, is no reason to refuse the next run. `predict` has a lock of its own,
    as it may look at what a run has saved so far.

    Who holds the folder for `fit` removes what killed runs have left half written in it.

    Raises:
        InputError: If another process holds it; the message says which, and since when.
    """
    path = RunFolder(folder).lock(command)
    if not is_first_rank() or _identify(path) in _held:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        is_locked = _lock(handle, folder, command)
        if command == "fit":
            inner = [x for x in folder.iterdir() if x.is_dir() and not (x / path.name).exists()]
            for place in (folder, *inner):  # what has a lock of its own is another run's
                remove_leftovers(place, is_held=is_locked)
        own = _identify(path)
        _held.add(own)
        try:
            _write(handle, {"host": socket.gethostname(), "pid": os.getpid(), "start": _now()})
            yield
        finally:
            _held.discard(own)
            if own[0] == os.getpid():  # a fork of it holds nothing
                os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def is_held(folder: Path, command: str = "fit") -> bool:
    """Return whether a process runs a command in a folder now, as far as its system has locks."""
    path = RunFolder(folder).lock(command)
    if _identify(path) in _held:
        return True
    if not path.is_file() or path.stat().st_size == 0:
        return False  # who holds it has written who it is; a killed one may have left that
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, LOCKED_BYTE)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    finally:
        os.close(handle)  # which gives back what it has got
    return False


def _lock(handle: int, folder: Path, command: str) -> bool:
    """Return whether it is locked now: False where there are no locks, which is said."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, LOCKED_BYTE)
    except OSError as error:
        if error.errno in WITHOUT_LOCKS:
            print(
                f"{str(folder)!r} is on a file system without locks ({error.strerror}): a second "
                "run there would not be noticed",
                flush=True,
            )
            return False
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise InputError(
            f"trainer.default_root_dir: {str(folder)!r} is in use by another {command} "
            f"({_describe_holder(handle)}); wait for its end, stop it, or choose another folder"
        ) from None
    return True


def _describe_holder(handle: int) -> str:
    for _ in range(20):
        try:
            holder = json.loads(os.pread(handle, 4096, 0))
            return f"host {holder['host']}, process {holder['pid']}, since {holder['start']}"
        except (OSError, ValueError, LookupError, TypeError):  # in the moment before it is written
            time.sleep(0.05)
    return "which has not said who it is"


def _write(handle: int, holder: dict[str, object]) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{json.dumps(holder)}\n".encode(), 0)


def _identify(path: Path) -> tuple[int, int, int]:
    try:
        state = path.stat()
    except FileNotFoundError:
        return os.getpid(), 0, 0
    return os.getpid(), state.st_dev, state.st_ino


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
