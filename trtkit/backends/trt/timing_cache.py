"""Timing cache files: one per GPU and TensorRT version, safe for concurrent builders."""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trtkit.errors import OutputError
from trtkit.files import user_cache_dir, write_bytes

__all__ = ["TimingCache"]


class TimingCache:
    """A timing cache file.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def from_setting(cls, setting: bool | Path, *, version: str, gpu: str, sm: str) -> TimingCache | None:
        """Choose the cache file of a build.

        Args:
            setting: `BuildSettings.timing_cache`.
            version: TensorRT's version.
            gpu: The GPU's name.
            sm: Its compute capability.

        Returns:
            The cache, or None where the setting is False.
        """
        if setting is False:
            return None
        if setting is not True:
            return cls(Path(setting))
        slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
        return cls(user_cache_dir() / "timing" / f"tensorrt-{version}-{slug}-{sm}.cache")

    def attach(self, config: Any) -> int:
        """Load the file into a builder configuration.

        A file that TensorRT does not load is deleted with a warning; the build then times all tactics.

        Args:
            config: TensorRT's `IBuilderConfig`.

        Returns:
            Bytes loaded from the file, 0 for an empty cache.
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
                f"The timing cache {self.path} does not load in this TensorRT: it was deleted.",
                stacklevel=2,
            )
            self.delete()
        self.attach_empty(config)
        return 0

    def attach_empty(self, config: Any) -> None:
        """Set an empty cache in a builder configuration.

        Args:
            config: TensorRT's `IBuilderConfig`.
        """
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)

    def save(self, config: Any) -> None:
        """Write the build's timings, merged with those that other builders wrote meanwhile.

        A file that can't be written is a warning, not an error.

        Args:
            config: TensorRT's `IBuilderConfig` after the build.
        """
        cache = config.get_timing_cache()
        if cache is None:
            return
        try:
            with self._lock():
                data = self._read()
                if data:
                    with contextlib.suppress(TypeError, ValueError, RuntimeError):
                        other = config.create_timing_cache(data)
                        if other is not None:
                            cache.combine(other, ignore_mismatch=False)
                write_bytes(self.path, bytes(cache.serialize()))
        except (OSError, OutputError) as error:
            warnings.warn(f"The timing cache {self.path} was not written: {error}", stacklevel=2)

    def delete(self) -> None:
        """Delete the file."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _read(self) -> bytes:
        # `write_bytes` replaces the file atomically, so reading needs no lock.
        try:
            return self.path.read_bytes()
        except OSError:
            return b""

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the file's lock; the system releases it when a process dies."""
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
    """Whether a cache has the file's contents: TensorRT 8.6 turns a text file into an empty cache without an error."""
    size = len(bytes(cache.serialize()))
    return size > len(bytes(empty.serialize())) or size == len(data)
