"""Tactic timings kept between builds: one file for each GPU and TensorRT version, safe against two builders at once."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trtkit.errors import OutputError
from trtkit.files import write_bytes

__all__ = ["TimingCache", "user_cache_dir"]


def user_cache_dir() -> Path:
    """Where trtkit keeps what it may lose: `TRTKIT_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("TRTKIT_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "trtkit" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtkit"


class TimingCache:
    """A timing cache file.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def from_setting(cls, setting: bool | Path, *, version: str, gpu: str, sm: str) -> TimingCache | None:
        """The cache that a build's settings ask for.

        Args:
            setting: `BuildSettings.timing_cache`.
            version: TensorRT's.
            gpu: The GPU's name.
            sm: Its compute capability.
        """
        if setting is False:
            return None
        if setting is not True:
            return cls(Path(setting))
        slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
        return cls(user_cache_dir() / "timing" / f"tensorrt-{version}-{slug}-{sm}.cache")

    def attach(self, config: Any) -> int:
        """Give a builder's configuration what the file holds.

        A file that TensorRT does not take is dropped with a warning: it costs time, never the build.

        Args:
            config: TensorRT's `IBuilderConfig`.

        Returns:
            Bytes taken from the file, 0 for a fresh start.
        """
        data = self._read()
        if data:
            with contextlib.suppress(TypeError, ValueError, RuntimeError):
                cache = config.create_timing_cache(data)
                if (
                    cache is not None
                    and config.set_timing_cache(cache, ignore_mismatch=False)
                    and _was_loaded(cache, config.create_timing_cache(b""), data)
                ):
                    return len(data)
            warnings.warn(
                f"The timing cache {self.path} does not load in this TensorRT: it was dropped, this build times anew.",
                stacklevel=2,
            )
            self.drop()
        self.fresh(config)
        return 0

    def fresh(self, config: Any) -> None:
        """Give a builder's configuration an empty cache.

        Args:
            config: TensorRT's `IBuilderConfig`.
        """
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)

    def keep(self, config: Any) -> None:
        """Write what a build timed, joined with what other builders wrote meanwhile.

        A cache folder that can't be written costs later builds time and is no error.

        Args:
            config: TensorRT's `IBuilderConfig` after the build.
        """
        cache = config.get_timing_cache()
        if cache is None:
            return
        try:
            with self._locked():
                written = self._read()
                if written:
                    with contextlib.suppress(TypeError, ValueError, RuntimeError):
                        other = config.create_timing_cache(written)
                        if other is not None:
                            cache.combine(other, ignore_mismatch=False)
                write_bytes(self.path, bytes(cache.serialize()))
        except (OSError, OutputError) as error:
            warnings.warn(f"The timing cache {self.path} was not written: {error}", stacklevel=2)

    def drop(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _read(self) -> bytes:
        # Files appear whole (`write_bytes` renames), so reading needs no lock.
        try:
            return self.path.read_bytes()
        except OSError:
            return b""

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the file's lock, which the system frees when a process dies."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a+b") as handle:
            if sys.platform == "win32":
                import msvcrt

                handle.seek(0)
                msvcrt.locking(handle.fileno(), msvcrt.LK_LOCK, 1)
                try:
                    yield
                finally:
                    handle.seek(0)
                    msvcrt.locking(handle.fileno(), msvcrt.LK_UNLCK, 1)
            else:
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX)
                yield


def _was_loaded(cache: Any, empty: Any, data: bytes) -> bool:
    """Whether a cache holds what a file did: TensorRT 8.6 made an empty one of a text, and said nothing."""
    size = len(bytes(cache.serialize()))
    return size > len(bytes(empty.serialize())) or size == len(data)
