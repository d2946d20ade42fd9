"""Atomic writes of files and folders, and checks of outputs before the work."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from trtkit.errors import DiskFullError, OutputError, OutputExistsError, TrtkitError
from trtkit.files import escape_surrogates, hash_parts
from trtkit.unfinished import (
    NO_LOCKS,
    PREFIX,
    SLOTS,
    is_open_at,
    lock,
    locked_folder,
    open_file,
    open_folder,
    remove_leftover,
    remove_path,
    unfinished_path,
)

__all__ = [
    "atomic_folder",
    "atomic_write",
    "check_output",
    "check_output_folder",
    "find_published",
    "publish_interrupted",
    "replace_folder",
    "restore_interrupted",
    "temporary_folder",
    "write_bytes",
    "write_json",
]

PUBLISHED = f"{PREFIX}published"
"""The folder of files that count as published and are not moved to their names yet."""

REMOVED = f"{PREFIX}removed"
"""In `PUBLISHED`: the names of files that the published ones make obsolete, one per line."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exhausted quota and a file beyond the limit."""


# Writing.


@contextlib.contextmanager
def atomic_write(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces `path` when the block ends without an error.

    The file is on the disk before it gets its name (fsync). If the block raises (Ctrl-C included), the temporary file
    is removed and `path` stays as it was. What a killed process leaves is removed by the next writer of `path`.

    Args:
        path: The file; missing folders are created.
        overwrite: Replace an existing file or link.

    Yields:
        A path to write to.

    Raises:
        OutputExistsError: `path` exists and `overwrite` is false.
        DiskFullError: The disk is full.
        OutputError: The file can't be written.
    """
    path = Path(path)
    with _translate_errors(path):
        _check_replaceable(path, overwrite=overwrite)
        with _created_folders(path.parent), unfinished_path(path, open_file) as temporary:
            yield temporary
            _sync(temporary)
            _check_replaceable(path, overwrite=overwrite)
            temporary.replace(path)
            _sync(path.parent)


@contextlib.contextmanager
def atomic_folder(folder: str | Path, *, remove: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty folder whose files appear in `folder`, all of them, when the block ends without an error.

    They are published by one rename; then each is moved to its name. Where that was interrupted, the next writer or
    reader of the folder finishes it (`publish_interrupted`), and `find_published` knows where a file is meanwhile.
    Files of other names in `folder` stay.

    Args:
        folder: The folder; it is created if it is missing.
        remove: Names of files in `folder` that go when the new ones come, unless they are among them.

    Yields:
        A folder to write files to; folders inside were written by `atomic_folder` too.

    Raises:
        DiskFullError: The disk is full.
        OutputError: The folder can't be written.
    """
    folder = Path(folder)
    with (
        _translate_errors(folder),
        _created_folders(folder),
        unfinished_path(folder / "folder", open_folder) as staging,
    ):
        yield staging
        names = [entry.name for entry in staging.iterdir()]
        obsolete = sorted({*remove} - {*names})
        if obsolete:
            (staging / REMOVED).write_text("\n".join(obsolete), encoding="utf-8")
            _sync(staging / REMOVED)
        for name in names:
            if not (staging / name).is_dir():
                _check_replaceable(folder / name, overwrite=True)
            _sync(staging / name)
        _sync(staging)
        _publish(staging, folder)


@contextlib.contextmanager
def temporary_folder(parent: str | Path | None = None) -> Iterator[Path]:
    """Yield an empty folder that goes when the block ends; those that killed processes left beside it go first.

    Args:
        parent: Where it is; None takes the system's temporary folder (TMPDIR).

    Raises:
        DiskFullError: The disk is full.
    """
    parent = Path(parent or tempfile.gettempdir())
    prefix = f"{PREFIX}tmp-"
    with _translate_errors(parent, only=_NO_SPACE):
        for leftover in parent.glob(f"{prefix}*"):
            remove_leftover(leftover)
        while True:
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            handle = open_folder(folder)
            is_locked = lock(handle)
            if is_locked is None or (is_locked and is_open_at(handle, folder)):
                break
            # Another process took it for a leftover before it was locked.
            os.close(handle)
        try:
            yield folder
        finally:
            remove_path(folder)
            os.close(handle)


@contextlib.contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` and all in it, when the block ends without an error.

    Both exchange their names in one step, so that a folder is there at every moment and a killed process loses none.
    Where the system can't do that (Windows, some network file systems), `restore_interrupted` puts the old one back.

    Args:
        folder: The folder; it is created if it is missing. A link is replaced, not followed.

    Yields:
        A folder to write files to.

    Raises:
        DiskFullError: The disk is full.
        OutputError: The folder can't be replaced.
    """
    folder = Path(folder)
    with _translate_errors(folder), _created_folders(folder.parent), temporary_folder(folder.parent) as temporary:
        staging = temporary / "new"
        staging.mkdir()
        yield staging
        for path in (*staging.rglob("*"), staging):
            _sync(path)
        restore_interrupted(folder)
        if not os.path.lexists(folder):
            staging.rename(folder)
        elif not _exchange(staging, folder):
            old = _old_folder(folder)
            folder.rename(old)
            try:
                staging.rename(folder)
            except OSError:
                old.rename(folder)
                raise
        _sync(folder.parent)
        restore_interrupted(folder)


def restore_interrupted(folder: str | Path) -> None:
    """Put a folder back whose replacement was killed before the new one was in place; does nothing elsewhere."""
    folder = Path(folder)
    old = _old_folder(folder)
    if os.path.lexists(old):
        # Another process may do it just now.
        with contextlib.suppress(OSError):
            if os.path.lexists(folder):
                remove_path(old)
            else:
                old.rename(folder)


def publish_interrupted(folder: str | Path) -> None:
    """Finish the publication of a folder whose writer was killed; does nothing where that can't be done or needn't."""
    folder = Path(folder)
    if os.path.lexists(folder / PUBLISHED):
        # In a folder that can't be written, `find_published` finds the files where they are.
        with contextlib.suppress(OSError), locked_folder(folder):
            _move_published(folder)


def find_published(folder: str | Path, name: str) -> Path:
    """Where a file of a folder is, if it exists: at its name, or among those that are published and not moved yet."""
    published = Path(folder) / PUBLISHED / name
    return published if published.exists() else Path(folder) / name


def write_bytes(path: str | Path, data: bytes, *, overwrite: bool = True) -> Path:
    """Write bytes as `atomic_write` does."""
    with atomic_write(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_json(path: str | Path, value: Any, *, overwrite: bool = True) -> Path:
    """Write a value as indented JSON as `atomic_write` does."""
    # A lone surrogate, of a name that is not UTF-8, becomes an escape of JSON and is read as itself again.
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return write_bytes(path, text.encode("utf-8", "backslashreplace"), overwrite=overwrite)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    if sys.platform == "win32" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if sys.platform != "win32" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems have no fsync for folders.
        if error.errno not in NO_LOCKS:
            raise
    finally:
        os.close(handle)


def _old_folder(folder: Path) -> Path:
    """Where a folder is while the new one takes its place, if both can't exchange their names."""
    return folder.with_name(f"{PREFIX}old-{hash_parts(folder.name)[:12]}")


def _exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two files or folders in one step; False where that can't be done."""
    import ctypes

    names = [os.fsencode(first), os.fsencode(second)]
    if sys.platform == "linux":
        at_cwd, rename_exchange = -100, 2
        call, arguments = "renameat2", (at_cwd, names[0], at_cwd, names[1], rename_exchange)
    elif sys.platform == "darwin":
        rename_swap = 2
        call, arguments = "renamex_np", (*names, rename_swap)
    else:
        return False
    function = getattr(ctypes.CDLL(None), call, None)
    return function is not None and function(*arguments) == 0


def _publish(staging: Path, folder: Path) -> None:
    """Publish a folder's files in another one, by one rename; then move each to its name."""
    with locked_folder(folder):
        _move_published(folder)
        staging.rename(folder / PUBLISHED)
        _sync(folder)
        _move_published(folder)


def _move_published(folder: Path) -> None:
    """Move what is published to its names; the folder is locked."""
    published = folder / PUBLISHED
    if not published.is_dir():
        return
    # The manifests of results are JSON and come last, for readers that know nothing of `PUBLISHED`.
    names = sorted(
        {entry.name for entry in published.iterdir()} - {REMOVED}, key=lambda name: (name.endswith(".json"), name)
    )
    for name in names:
        if (published / name).is_dir():
            (folder / name).mkdir(exist_ok=True)
            _publish(published / name, folder / name)
        else:
            (published / name).replace(folder / name)
    removed = published / REMOVED
    if removed.exists():
        for name in removed.read_text(encoding="utf-8").splitlines():
            (folder / Path(name).name).unlink(missing_ok=True)
        removed.unlink()
    _sync(folder)
    published.rmdir()
    _sync(folder)


@contextlib.contextmanager
def _created_folders(folder: Path) -> Iterator[None]:
    """Create a folder and its parents; those that were created go again if the block raises."""
    _check_parent(folder)
    missing = [parent for parent in (folder, *folder.parents) if not os.path.lexists(parent)]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        # Another writer may have put a file there.
        with contextlib.suppress(OSError):
            for parent in missing:
                parent.rmdir()
        raise


# Checks and errors.


def check_output(path: str | Path, *, overwrite: bool = False) -> Path:
    """Check, before slow work, that a file can be written; nothing is created.

    Args:
        path: The file; folders on the way may be missing.
        overwrite: Whether an existing file or link may be replaced.

    Raises:
        OutputExistsError: The file exists and `overwrite` is false.
        OutputError: The path is a folder, its name is too long, or it can't be written.
    """
    path = Path(path)
    with _translate_errors(path):
        _check_replaceable(path, overwrite=overwrite)
        _check_parent(path.parent)
    return path


def check_output_folder(folder: str | Path, names: Collection[str] = ()) -> Path:
    """Check, before slow work, that files can be written into a folder; nothing is created.

    Args:
        folder: The folder; it may be missing.
        names: Names of files that will be written into it, which may replace others.

    Raises:
        OutputError: The path is a file, a name is too long or a folder's, or it can't be written.
    """
    folder = Path(folder)
    with _translate_errors(folder):
        _check_parent(folder)
    for name in names:
        with _translate_errors(folder / name):
            _check_replaceable(folder / name, overwrite=True)
    return folder


def _check_replaceable(path: Path, *, overwrite: bool) -> None:
    """Check that a path is free, or a file or link that may be replaced."""
    _check_name(path)
    try:
        kind = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(kind) or path.is_dir():
        raise OSError(errno.EISDIR, "")
    if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
        raise OSError(errno.ENXIO, "")
    if not overwrite:
        raise OSError(errno.EEXIST, "")


def _check_name(path: Path) -> None:
    """Check characters and lengths, which folders that are missing hide from the file system."""
    # onnx, ONNX Runtime and polars take no name that is not UTF-8.
    if "\0" in str(path) or escape_surrogates(str(path)) != str(path):
        raise OSError(errno.EILSEQ, "")
    if max(map(len, map(os.fsencode, path.parts)), default=0) > 255 or len(os.fsencode(path)) > 4000:
        raise OSError(errno.ENAMETOOLONG, "")


def _check_parent(folder: Path) -> None:
    """Check that a folder, or the nearest one above it that exists, takes new files."""
    _check_name(folder)
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise OSError(errno.ENOTDIR, "")
    if hasattr(os, "O_TMPFILE"):
        try:
            # A file without a name: permissions, read-only mounts and full disks show, and nothing can be left.
            os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
                raise
        else:
            return
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _shorten(path: Path) -> str:
    """A path for a message; the middle of a very long one is left out."""
    text = escape_surrogates(str(path)).replace("\0", "\\0")
    return text if len(text) <= 200 else f"{text[:100]}...{text[-60:]}"


@contextlib.contextmanager
def _translate_errors(path: Path, only: Collection[int] | None = None) -> Iterator[None]:
    """Raise errors of writing as `OutputError`, those that a library wrapped included; or some error numbers only."""
    try:
        yield
    except TrtkitError:
        raise
    except BaseException as error:
        number = error.errno or 0 if isinstance(error, OSError) else _find_errno(error, path)
        if number is None or (only is not None and number not in only):
            raise
        found = getattr(error, "strerror", None) or os.strerror(number) if number else str(error)
        raise _output_error(path, number, found) from error


def _find_errno(error: BaseException, path: Path) -> int | None:
    """The error number behind another library's exception, or None if it is none of writing.

    polars names the number; PyTorch's writer fails without a reason when the disk is full.
    """
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        return None
    text = str(error)
    match = re.search(r"\(os error (\d+)\)", text)
    if match is not None:
        return int(match[1])
    for number in _NO_SPACE:
        if os.strerror(number) in text:
            return number
    if isinstance(error, RuntimeError):
        with contextlib.suppress(OSError):
            existing = next(folder for folder in (path, *path.parents) if folder.is_dir())
            return errno.ENOSPC if shutil.disk_usage(existing).free < 1 << 16 else None
    return None


def _output_error(path: Path, number: int, found: str) -> OutputError:
    other = (OutputError, "output-not-writable", found, "choose an output that you can write to")
    kind, code, found, do = _ERRORS.get(number, other)
    return kind(f"write {_shorten(path)}", found, do, code=code, path=str(path))


_FULL = (DiskFullError, "disk-full", "the disk is full", "free some space; nothing was written")
_ERRORS: dict[int, tuple[type[OutputError], str, str, str]] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: (
        OutputError,
        "output-too-large",
        "the file is larger than this process or file system may write",
        "raise the limit (ulimit -f), or choose another disk; nothing was written",
    ),
    errno.EEXIST: (
        OutputExistsError,
        "output-exists",
        "the file exists and was kept",
        "allow overwriting (overwrite=True, --overwrite) or name another output",
    ),
    errno.ENAMETOOLONG: (
        OutputError,
        "output-name-too-long",
        "the name is too long (255 bytes at most for each part)",
        "choose a shorter name",
    ),
    errno.ENOTDIR: (
        OutputError,
        "output-parent-not-folder",
        "a part of the path is a file",
        "choose an output inside a folder",
    ),
    errno.EISDIR: (OutputError, "output-is-folder", "it is a folder", "name a file"),
    errno.EILSEQ: (
        OutputError,
        "output-name-invalid",
        "the path has a NUL character or is not UTF-8",
        "name another output",
    ),
    errno.ENXIO: (OutputError, "output-not-a-file", "it is a device, pipe or socket", "name a file"),
    errno.EBUSY: (OutputError, "output-busy", f"{SLOTS} processes write it", "wait, or name another output"),
}
"""Type, code, what was found and what to do, by error number."""
