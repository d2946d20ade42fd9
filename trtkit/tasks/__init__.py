"""The tasks: detect, segment, classify, pose, obb, and those registered from outside."""

from __future__ import annotations

import importlib

from trtkit.errors import ModelError
from trtkit.models.model import TASKS
from trtkit.tasks.base import (
    REGISTERED_TASKS,
    Detections,
    PostprocessSettings,
    Prediction,
    Task,
    register_output_format,
    register_task,
)

__all__ = [
    "Detections",
    "PostprocessSettings",
    "Prediction",
    "Task",
    "get_task",
    "register_output_format",
    "register_task",
]


def get_task(name: str) -> Task:
    """Return the task of that name.

    Args:
        name: One of `trtkit.models.TASKS`, or the name of a task registered with `register_task`.

    Raises:
        ModelError: There is no such task.
    """
    if name not in REGISTERED_TASKS and name in TASKS:
        # A task is one module of this package, imported when it is first asked for.
        importlib.import_module(f"trtkit.tasks.{name}")
    if name not in REGISTERED_TASKS:
        known = tuple(dict.fromkeys((*TASKS, *REGISTERED_TASKS)))
        raise ModelError(
            f"use task {name!r}",
            "there is no such task",
            f"use one of {', '.join(known)}",
            code="task-unknown",
            name=name,
            names=known,
        )
    return REGISTERED_TASKS[name]()
