"""What the shapes of a model's outputs tell about its classes and keypoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from trtkit.errors import ModelError
from trtkit.sources.card import TASKS

__all__ = ["check_task", "count_classes", "named"]

Shape = Sequence[int | None]
Fail = Callable[[str, str, str], ModelError]


def check_task(task: str | None, found: str | None, asked: str, fail: Fail) -> str:
    """The task a model has, from what the caller said and what the source says.

    Args:
        task: What the caller said, or None.
        found: What the source says, or None.
        asked: How an error names the work.
        fail: The error to raise.

    Raises:
        ModelError: Both are silent, one is unknown, or they differ.
    """
    task = task or found
    known = ", ".join(TASKS)
    if task is None:
        raise fail(asked, "it does not say what its task is", f"pass task= one of {known}")
    if task not in TASKS:
        raise fail(asked, f"its task {task!r} is unknown", f"pass task= one of {known}")
    if found is not None and found != task:
        raise fail(asked, f"task={task!r} was asked but it is a model for {found}", "leave task= out")
    return task


def count_classes(
    task: str, shapes: Sequence[Shape], names: int | None, asked: str, fail: Fail
) -> tuple[int, tuple[int, int] | None]:
    """The number of classes and, for pose, the keypoint shape.

    Args:
        task: One of `TASKS`.
        shapes: Shapes of the outputs in order, None where a size is dynamic.
        names: How many class names the caller gave, or None.
        asked: How an error names the work.
        fail: The error to raise.

    Returns:
        Classes, and (keypoints, values a keypoint) for pose or None. Keypoint values that divide by both 2 and 3 are
        taken as x, y, visibility.

    Raises:
        ModelError: The shapes do not fit the task, or they do not tell and no names were given.
    """
    rank = 2 if task == "classify" else 3
    if not shapes or len(shapes[0]) != rank or (task == "segment" and (len(shapes) < 2 or len(shapes[1]) != 4)):
        listed = ", ".join("x".join("?" if size is None else str(size) for size in shape) for shape in shapes)
        raise fail(asked, f"outputs of shape {listed or 'nothing'} do not fit {task}", "pass the task it was made for")
    values = shapes[0][1]
    fixed = {"classify": 0, "detect": 4, "obb": 5}.get(task, 4)
    if task == "segment":
        masks = shapes[1][1]
        values = None if masks is None or values is None else values - masks
    if task == "pose":
        if names is None:
            raise fail(asked, "its shapes do not tell classes from keypoints", "pass names=")
        extra = 0 if values is None else values - 4 - names
        if extra < 2 or (extra % 3 and extra % 2):
            raise fail(
                asked, f"{values} values an anchor leave no keypoints for {names} classes", "pass the right names="
            )
        width = 2 if extra % 3 else 3
        return names, (extra // width, width)
    if values is None and names is None:
        raise fail(asked, "the number of classes is dynamic in it", "pass names=")
    classes = names if values is None else values - fixed
    if classes is None or classes < 1 or (names is not None and names != classes):
        raise fail(asked, f"{names} names were given for {classes} classes", "pass one name for each class")
    return classes, None


def named(names: Mapping[int, str] | Sequence[str] | None, classes: int, asked: str, fail: Fail) -> dict[int, str]:
    """Class names by index; numbers where there are none.

    Raises:
        ModelError: There are more or fewer names than classes.
    """
    if names is None:
        return {index: str(index) for index in range(classes)}
    pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
    found = {int(index): str(name) for index, name in pairs}
    if sorted(found) != list(range(classes)):
        raise fail(asked, f"{len(found)} names were given for {classes} classes", "pass one name for each class")
    return dict(sorted(found.items()))
