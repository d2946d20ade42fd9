"""A process that is killed after its n-th step of writing, without killing the test's process."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl
import pytest

STEPS: list[tuple[Any, str]] = [
    (os, "open"),
    (os, "fsync"),
    (os, "truncate"),
    (shutil, "rmtree"),
    (pl.DataFrame, "write_parquet"),
    *(
        (pathlib.Path, name)
        for name in ("mkdir", "rename", "replace", "rmdir", "touch", "unlink", "write_bytes", "write_text")
    ),
]
"""Calls that change a disk, or make sure of it, by owner and name."""


class Killed(BaseException):
    """The process would be dead here."""


@contextlib.contextmanager
def killed_after(count: int, *, torn: bool = False) -> Iterator[list[str]]:
    """Let `count` steps happen, and none after them; yields the names of all steps that were tried.

    What is cleaned up on the way out does not happen either: a killed process cleans nothing up.

    Args:
        count: Steps that succeed.
        torn: Whether the step after them writes half of its file, where it writes one.
    """
    steps: list[str] = []

    def hook(original: Callable[..., Any], name: str) -> Callable[..., Any]:
        def step(*values: Any, **settings: Any) -> Any:
            steps.append(name)
            if len(steps) <= count:
                return original(*values, **settings)
            if torn and len(steps) == count + 1 and name.startswith("write_"):
                original(*values, **settings)
                target = next(value for value in values if isinstance(value, pathlib.Path))
                os_truncate(target, target.stat().st_size // 2)
            raise Killed(name)

        return step

    with pytest.MonkeyPatch.context() as patch:
        os_truncate = os.truncate
        for owner, name in STEPS:
            patch.setattr(owner, name, hook(getattr(owner, name), name))
        with contextlib.suppress(Killed):
            yield steps


def each_kill(prepare: Callable[[], None], write: Callable[[], Any], *, every: int = 1) -> Iterator[str]:
    """Kill a writer after each of its steps in turn; yields the step that did not happen.

    Args:
        prepare: Makes the state before the writer.
        write: The writer; one of the yields is of one that ran to its end.
        every: Of so many steps one is tried; the last third is tried step by step, where files get their names.
    """
    with pytest.MonkeyPatch.context() as patch:
        # What is read afterwards comes from memory; waiting for the disk would take most of the time.
        patch.setattr(os, "fsync", lambda handle: None)
        prepare()
        with killed_after(sys.maxsize) as names:
            write()
        yield "none"
        for count, name in enumerate(names):
            if count % every == 0 or count > len(names) * 2 // 3:
                prepare()
                with killed_after(count):
                    write()
                yield f"{count}: {name}"
            if name.startswith("write_"):
                prepare()
                with killed_after(count, torn=True):
                    write()
                yield f"{count}: half of {name}"
