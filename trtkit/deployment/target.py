"""The interface of a deployment target, and the registry of targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtkit.deployment.bundle import Bundle, Source

__all__ = ["TARGETS", "Target", "register_target"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A deployment target.

    Attributes:
        name: Its name.
        formats: Formats of the model file it takes: "onnx", "engine".
        write: Writes the target's own files into the folder, which holds the common ones already; returns sentences
            for the README.
        merge: Called with the folder that holds one folder for each of several model files, to put together what they
            share; None where they share nothing.
        check_several: Called with the names of several model files, without their endings; raises an error, before the
            models run, where they can't share what `merge` makes. None where they always can.
        check: Raises an error, before the model runs, where the target does not take it; None where it takes all of
            `formats`.
        file_notes: What files hold, by name, for the README's table.
    """

    name: str
    formats: tuple[str, ...]
    write: Callable[[Bundle, Path], Sequence[str]]
    merge: Callable[[Path], None] | None = None
    check_several: Callable[[Sequence[str]], None] | None = None
    check: Callable[[Source], None] | None = None
    file_notes: Mapping[str, str] = dataclasses.field(default_factory=dict)


TARGETS: dict[str, Target] = {}
"""Targets by name."""


def register_target(target: Target) -> Target:
    """Register a target; a name that is already registered gets the new one.

    Args:
        target: The target.
    """
    TARGETS[target.name] = target
    return target
