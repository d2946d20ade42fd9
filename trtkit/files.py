"""Atomic writes, JSON, SHA-256 of files, and the cache folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trtkit.errors import DiskFullError, OutputError, OutputExistsError

__all__ = [
    "atomic_write",
    "hash_file",
    "hash_parts",
    "read_json",
    "read_limited",
    "user_cache_dir",
    "write_bytes",
    "write_json",
]


@contextlib.contextmanager
def atomic_write(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces `path` when the block ends without an error.

    If the block raises (Ctrl-C included), the temporary file is removed and `path` stays as it was.

    Args:
        path: The file; missing folders are created.
        overwrite: Replace an existing file.

    Yields:
        A path to write to.

    Raises:
        OutputExistsError: `path` exists and `overwrite` is false.
        DiskFullError: The disk is full.
        OutputError: The folder can't be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputExistsError(
            f"write {path}",
            "the file exists and was kept",
            "allow overwriting (overwrite=True, --overwrite) or name another output",
            code="output-exists",
            path=str(path),
        )
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"write {path}",
                "the disk is full",
                "free some space; nothing was written",
                code="disk-full",
                path=str(path),
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EPERM):
            raise OutputError(
                f"write {path}",
                error.strerror or str(error),
                "choose an output that you can write to",
                code="output-not-writable",
                path=str(path),
            ) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes, *, overwrite: bool = True) -> Path:
    """Write bytes atomically.

    Raises:
        OutputError: As `atomic_write` does.
    """
    with atomic_write(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_json(path: str | Path, value: Any, *, overwrite: bool = True) -> Path:
    """Write a value as indented JSON atomically.

    Raises:
        OutputError: As `atomic_write` does.
    """
    return write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), overwrite=overwrite)


def read_limited(path: str | Path, limit: int) -> bytes:
    """Read a regular file of limited size.

    Args:
        path: The file.
        limit: Largest size, bytes.

    Raises:
        ValueError: It is a folder, pipe or device, or larger.
        OSError: It is missing or can't be read.
    """
    # A pipe without a writer would block.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") if stat.S_ISREG(os.fstat(handle).st_mode) else _refuse(handle) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"it has {size:,} bytes, more than {limit:,}")
        return file.read(limit)


def _refuse(handle: int) -> Any:
    os.close(handle)
    raise ValueError("it is not a regular file")


def read_json(path: str | Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def hash_parts(*parts: bytes | str) -> str:
    """SHA-256 of length-prefixed parts as 64 hex digits; ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file as 64 hex digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def user_cache_dir() -> Path:
    """The folder of cache files: `TRTKIT_CACHE`, else trtkit's folder in the user's cache directory."""
    chosen = os.environ.get("TRTKIT_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "trtkit" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtkit"
