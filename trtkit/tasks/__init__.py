"""How each task's images are prepared, its outputs read, drawn and compared with labels."""

from __future__ import annotations

import importlib

from trtkit.errors import ModelError
from trtkit.models.model import TASKS
from trtkit.tasks.base import Detections, PostprocessSettings, Prediction, Task

__all__ = ["Detections", "PostprocessSettings", "Prediction", "Task", "get_task"]

# A task is one module here, loaded when first asked for.
_PLACES = {name: (f"trtkit.tasks.{name}", name.capitalize()) for name in TASKS}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ModelError: There is no such task.
    """
    if name not in _PLACES:
        raise ModelError(f"use task {name!r}", "trtkit can't judge it", f"use one of: {', '.join(_PLACES)}")
    module, kind = _PLACES[name]
    found: Task = getattr(importlib.import_module(module), kind)()
    return found
