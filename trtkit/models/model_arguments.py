"""Task, class names, channels and sizes of models that do not describe themselves, from the caller's arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from trtkit.arguments import ARGUMENTS
from trtkit.errors import ModelError
from trtkit.models.model import TASKS, Preprocess

__all__ = [
    "ErrorType",
    "names_mismatch",
    "parse_class_names",
    "parse_imgsz",
    "register_task_name",
    "resolve_class_names",
    "resolve_task",
    "with_channels",
]

_REGISTERED_TASKS: list[str] = []

ErrorType = type[ModelError]


def register_task_name(name: str) -> None:
    """Let models of another task than `TASKS` load; `trtkit.tasks.base.register_task` calls this.

    Args:
        name: The task's name.
    """
    if name not in (*TASKS, *_REGISTERED_TASKS):
        _REGISTERED_TASKS.append(name)


def resolve_task(task: str | None, known: str | None, asked: str, error_type: ErrorType) -> str:
    """The task of a model, from the caller's argument and the source's metadata.

    Args:
        task: The caller's argument, or None.
        known: The task in the source's metadata, or None.
        asked: What was asked for, for errors.
        error_type: The error to raise.

    Raises:
        ModelError: Both are None, the task is unknown, or they differ.
    """
    task = task or known
    names = (*TASKS, *_REGISTERED_TASKS)
    tasks = ", ".join(names)
    if task is None:
        raise error_type(asked, "its task is unknown", f"pass task= one of {tasks}", code="model-task-missing")
    if task not in names:
        raise error_type(
            asked,
            f"there is no task {task[:40]!r}",
            f"pass task= one of {tasks}",
            code="model-task-unknown",
            value=task,
            names=names,
        )
    if known is not None and known != task:
        raise error_type(
            asked,
            f"task={task!r} was passed, but the model's task is {known}",
            "leave task= out",
            code="model-task-mismatch",
            value=task,
            expected=known,
        )
    return task


def with_channels(preprocess: Preprocess, channels: int | None, asked: str, error_type: ErrorType) -> Preprocess:
    """The preprocessing with the model's number of channels.

    Args:
        preprocess: The preprocessing.
        channels: Channels of the model's input, None if dynamic.
        asked: What was asked for, for errors.
        error_type: The error to raise.

    Raises:
        ModelError: Its mean or standard deviation has values for another number of channels.
    """
    try:
        return dataclasses.replace(preprocess, channels=channels or preprocess.channels)
    except ValueError as error:
        raise error_type(
            asked,
            f"its preprocessing does not fit its input ({error})",
            "pass preprocess= with values for each channel",
            code="model-preprocess-mismatch",
            channels=channels,
        ) from error


def parse_class_names(names: Any, asked: str, error_type: ErrorType) -> dict[int, str]:
    """Class names by class index, from the caller's mapping or sequence.

    Args:
        names: The caller's argument.
        asked: What was asked for, for errors.
        error_type: The error to raise.

    Raises:
        ModelError: It is neither, or an index is no whole number.
    """
    try:
        if isinstance(names, (str, bytes)):
            raise TypeError("one text")
        pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
        return {int(index): str(name) for index, name in pairs}
    except (TypeError, ValueError) as error:
        raise error_type(
            asked,
            f"names is {str(names)[:40]!r}",
            "pass a list of texts, or a mapping of class indices to texts",
            code="model-names-invalid",
            value=names,
        ) from error


def resolve_class_names(
    names: Mapping[int, str] | Sequence[str] | None, classes: int, asked: str, error_type: ErrorType
) -> dict[int, str]:
    """Class names by class index; the indices as text if there are no names.

    Args:
        names: The caller's argument, or None.
        classes: Number of classes.
        asked: What was asked for, for errors.
        error_type: The error to raise.

    Raises:
        ModelError: The names do not fit the number of classes.
    """
    if names is None:
        return {index: str(index) for index in range(classes)}
    by_index = parse_class_names(names, asked, error_type)
    if sorted(by_index) != list(range(classes)):
        raise names_mismatch(len(by_index), classes, asked, error_type)
    return dict(sorted(by_index.items()))


def names_mismatch(names: int | None, classes: int | None, asked: str, error_type: ErrorType) -> ModelError:
    """The error for names that do not fit the number of classes.

    Args:
        names: Number of names.
        classes: Number of classes.
        asked: What was asked for.
        error_type: The error's type.
    """
    return error_type(
        asked,
        f"{names} names do not fit {classes} classes"
        if names is not None
        else f"its outputs have room for {classes} classes",
        "pass names= with one name for each class, by index from 0",
        code="model-names-mismatch",
        names=names,
        classes=classes,
    )


def parse_imgsz(imgsz: Any, asked: str, error_type: ErrorType) -> tuple[int, int]:
    """Height and width in pixels from one number or two, by the rule of every verb's `imgsz`.

    Args:
        imgsz: The caller's argument, or a checkpoint's, which may be a list of one number.
        asked: What was asked for, for errors.
        error_type: The error to raise.

    Raises:
        ModelError: They are no whole numbers, or out of range.
    """
    rule = ARGUMENTS["imgsz"]
    try:
        sides = rule.convert(imgsz[0] if isinstance(imgsz, (list, tuple)) and len(imgsz) == 1 else imgsz)
    except (TypeError, ValueError, OverflowError) as error:
        raise error_type(
            asked,
            f"imgsz is {str(imgsz)[:40]}",
            f"pass {rule.expected}",
            code="model-imgsz-invalid",
            value=imgsz,
        ) from error
    return sides if isinstance(sides, tuple) else (sides, sides)
