"""Unfinished files and folders beside what they will be, each locked by its writer: an unlocked one is a leftover."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from trtkit.files import hash_parts

if sys.platform != "win32":
    import fcntl

__all__ = [
    "NO_LOCKS",
    "PREFIX",
    "SLOTS",
    "is_open_at",
    "lock",
    "locked_folder",
    "open_file",
    "open_folder",
    "remove_leftover",
    "remove_path",
    "unfinished_path",
]

PREFIX = ".trtkit-"
"""How names of unfinished files and folders begin; each is locked by its writer: an unlocked one is a leftover."""

MAX_SUFFIX = 16
"""Bytes of the longest suffix that a temporary name repeats; writers choose formats by it."""

SLOTS = 64
"""Writers that write one file at the same time."""

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What file systems without locks answer."""


def open_file(path: Path) -> int:
    """Open a file, which is created if it is missing; a link is refused."""
    return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)


def open_folder(path: Path) -> int:
    """Open a folder, which is created if it is missing."""
    path.mkdir(exist_ok=True)
    # Windows opens no folders, and has no locks that would need it.
    return os.open(path if sys.platform != "win32" else os.devnull, os.O_RDONLY)


def remove_path(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def lock(handle: int) -> bool | None:
    """Lock an open file or folder without waiting: whether that succeeded, None where the file system has no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return None if error.errno in NO_LOCKS else False
    return True


def is_open_at(handle: int, path: Path) -> bool:
    """Whether an open file still has its name: its former writer may have moved it before it was locked."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def unfinished_path(target: Path, open_path: Callable[[Path], int]) -> Iterator[Path]:
    """Yield a locked, empty file or folder beside the target; it goes when the block ends, unless it was moved.

    Its name follows from the target's, so that the next writer finds what a killed one has left.
    """
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= MAX_SUFFIX else ""
    stem = f"{PREFIX}{hash_parts(target.name)[:12]}"
    failure: OSError | None = None
    for number in range(SLOTS):
        path = target.with_name(f"{stem}-{number}{suffix}")
        try:
            handle = open_path(path)
        except (PermissionError, FileNotFoundError) as error:
            # Another user's, or a folder that its writer removes just now; or nothing can be written here.
            failure = error
            continue
        is_locked = lock(handle)
        if is_locked is None:
            # Without locks nothing shows whether another writer is at it: take a name of one's own.
            os.close(handle)
            remove_path(path)
            path = target.with_name(f"{PREFIX}{os.getpid()}-{os.urandom(4).hex()}{suffix}")
            os.close(open_path(path))
            break
        if is_locked and is_open_at(handle, path):
            break
        os.close(handle)
    else:
        raise failure or OSError(errno.EBUSY, "")
    try:
        if path.is_dir():
            for entry in path.iterdir():
                remove_path(entry)
        else:
            os.truncate(path, 0)
        for later in range(number + 1, number + 4):
            remove_leftover(target.with_name(f"{stem}-{later}{suffix}"))
        yield path
    finally:
        if is_locked is None:
            remove_path(path)
        else:
            try:
                # Once it is moved, its name may be another writer's.
                if is_open_at(handle, path):
                    remove_path(path)
            finally:
                os.close(handle)


def remove_leftover(path: Path) -> None:
    """Remove a file or folder whose writer is dead."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return
    try:
        if lock(handle) and is_open_at(handle, path):
            remove_path(path)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; waits for others, which hold it for a few renames."""
    handle = open_folder(folder)
    try:
        if sys.platform != "win32":
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
