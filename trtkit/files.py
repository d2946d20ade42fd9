"""Reading of files within limits, JSON, SHA-256, and the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

__all__ = [
    "escape_surrogates",
    "hash_file",
    "hash_parts",
    "read_json",
    "read_limited",
    "user_cache_dir",
]

MAX_JSON = 64 << 20
"""Bytes of the largest JSON file that is read: 100 times the largest that trtkit writes."""


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
        # Not up to the limit: room for so much would be made first.
        return file.read(size)


def _refuse(handle: int) -> Any:
    os.close(handle)
    raise ValueError("it is not a regular file")


def read_json(path: str | Path, *, limit: int = MAX_JSON) -> Any:
    """Read a JSON file, as `read_limited` does; one that is no JSON in UTF-8 or nested too deeply is a ValueError."""
    try:
        return json.loads(read_limited(path, limit).decode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def escape_surrogates(text: str) -> str:
    """Text that UTF-8 holds: lone surrogates, as of file names that are not UTF-8, become `\\udce9`.

    Args:
        text: Of a path, or from someone else's file.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def hash_parts(*parts: bytes | str) -> str:
    """SHA-256 of length-prefixed parts as 64 hex digits; ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
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
